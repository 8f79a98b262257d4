"""The radar of tasks/rl/radar.py around a policy that is a table: every number of a look computed a second way."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ajuste.learning.statistics.metrics import percentile_interval, resamples
from tasks.rl.radar import Radar, published
from tests.keys.test_ppo_by_hand import answer, log_softmax
from tests.made.bigram import Bigram

torch.set_num_threads(1)
SEED, T, LONGEST = 9, 0.7, 3
PROMPTS = [[1, number % 6] for number in range(10)]
PREFILLS = [f"<{number}>" for number in range(10)]


class Letters:
    """A tokenizer without a template: token n is the n-th letter, and 2 ends."""

    chat_template, eos_token_id = None, 2

    def decode(self, ids: list[int], **options: object) -> str:
        assert options == {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        return "".join("abcdef"[number] for number in ids)


class Judged(Bigram):
    """The table policy with a reward model beside it: the sum of the tokens, and a little of the prompt."""

    def scores(self, prompts: list[list[int]], responses: Tensor, mask: Tensor) -> Tensor:
        assert not responses[~mask].any()  # padding is token 0
        return (responses * mask).sum(1) + 0.1 * torch.tensor([prompt[-1] for prompt in prompts])


def gold(texts: list[str]) -> Tensor:
    """Likes the letter d, and long texts a little."""
    return torch.tensor([text.count("d") + 0.01 * len(text) + 0.001 * int(text[1]) for text in texts])


def radar(one: Judged) -> Radar:
    ids = [f"row {number}" for number in range(10)]
    return Radar(one, one.scores, ids, PROMPTS, PREFILLS, Letters(), gold, LONGEST, T, 4, SEED)


def by_hand(one: Judged) -> tuple[list[list[int]], dict[str, np.ndarray]]:
    """The answers, drawn in three passes of 4, 4 and 2 prompts, and each one's numbers."""
    policy, start = one.policy.detach().double(), one.start.double()
    generator, answers = torch.Generator().manual_seed(SEED), []
    for first in (0, 4, 8):
        some = PROMPTS[first : first + 4]
        drawn = torch.rand(len(some), LONGEST, generator=generator, dtype=torch.float64).tolist()
        answers += [answer(policy, prompt, numbers, T) for prompt, numbers in zip(some, drawn, strict=True)]
    texts = ["".join("abcdef"[token] for token in row if token != 2) for row in answers]
    pairs = [list(zip([prompt[-1], *row], row, strict=False)) for prompt, row in zip(PROMPTS, answers, strict=True)]
    numbers = {
        "proxy": [sum(row) + 0.1 * prompt[-1] for prompt, row in zip(PROMPTS, answers, strict=True)],
        "gold": [text.count("d") + 0.01 * (len(text) + 3) + 0.001 * n for n, text in enumerate(texts)],
        "kl": [sum((log_softmax(policy[b], T)[y] - log_softmax(start[b], T)[y]).item() for b, y in row)
               for row in pairs],
        "length": [len(row) for row in answers], "ended": [row[-1] == 2 for row in answers],
    }  # fmt: skip
    return answers, {name: np.array(values, dtype=float) for name, values in numbers.items()}


def interval(values: np.ndarray) -> dict[str, float]:
    low, high = percentile_interval(resamples(10, 1000, SEED) @ values / 10)
    return {"value": values.mean(), "low": low, "high": high}


def moved() -> Judged:
    one = Judged()
    with torch.no_grad():
        one.policy += 0.8 * torch.randn(6, 6, generator=torch.Generator().manual_seed(3))
    return one


def test_a_look_is_what_a_second_computation_finds() -> None:
    before, after = Judged(), moved()
    first, samples = radar(before).look(0, None)
    later, _ = radar(after).look(7, first)
    answers, known = by_hand(before)
    _, grown = by_hand(after)
    assert 0 < known["ended"].sum() < 10 and len(set(known["length"])) > 1 and known["kl"].mean() > 0
    for row, numbers, gains, update in ((first, known, known, 0), (later, grown, known, 7)):
        assert row["update"] == update
        for name in ("kl", "length", "ended"):
            assert row[name] == pytest.approx(numbers[name].mean(), abs=1e-6), name
        assert row["sqrt_kl"] == pytest.approx(numbers["kl"].mean() ** 0.5, abs=1e-6)
        for name in ("proxy", "gold"):
            assert row[name] == pytest.approx(interval(numbers[name]), abs=1e-5)
            assert row[f"{name}_gain"] == pytest.approx(interval(numbers[name] - gains[name]), abs=1e-5)
        assert set(row["rows"]) == {"proxy", "gold", "kl"}
        for name, values in row["rows"].items():
            assert values == pytest.approx(numbers[name].tolist(), abs=1e-5)
    assert later["proxy_gain"]["value"] != 0 != later["gold_gain"]["value"]
    assert [sample["id"] for sample in samples] == [f"row {number}" for number in range(8)]
    for number, sample in enumerate(samples):
        assert sample == {
            "update": 0, "id": f"row {number}", "prefill": f"<{number}>",
            "response": "".join("abcdef"[token] for token in answers[number] if token != 2),
            "proxy": first["rows"]["proxy"][number], "gold": first["rows"]["gold"][number],
            "kl": first["rows"]["kl"][number],
        }  # fmt: skip


def test_few_prompts_are_all_shown_and_a_look_keeps_no_gradients() -> None:
    one = moved()
    few = radar(one)
    few.ids, few.prompts, few.prefills = few.ids[:3], few.prompts[:3], few.prefills[:3]
    row, samples = few.look(1, None)
    assert len(samples) == 3 == len(row["rows"]["proxy"]) and one.batches == []


def test_of_a_kl_below_0_the_root_is_0() -> None:
    """An estimate of few samples may be negative."""
    numbers = {"proxy": [1.0] * 10, "gold": [0.5] * 10, "kl": [-0.3] * 10, "length": [2] * 10, "ended": [1.0] * 10}
    row = radar(Judged())._row(3, numbers, None)
    assert row["sqrt_kl"] == 0.0 and row["kl"] == pytest.approx(-0.3)


def test_what_is_published_has_no_rows_and_says_which_is_kept() -> None:
    radar = [{"update": 0, "kl": 0.0, "rows": {"kl": [0.0]}}, {"update": 5, "kl": 1.0, "rows": {"kl": [1.0]}}]
    assert published(radar, 5) == [{"update": 0, "kl": 0.0, "kept": False}, {"update": 5, "kl": 1.0, "kept": True}]


def test_without_a_gold_scorer_nothing_speaks_of_it() -> None:
    one = Judged()
    with_gold, _ = radar(one).look(0, None)
    row, samples = replace(radar(one), gold=None).look(0, None)
    assert set(row) == set(with_gold) - {"gold", "gold_gain"} and set(row["rows"]) == {"proxy", "kl"}
    assert row["proxy"] == with_gold["proxy"] and not any("gold" in sample for sample in samples)
