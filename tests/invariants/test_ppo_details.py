"""Details of RLHF that no single function owns: padding, samplers that would change the policy, settings by default."""

from pathlib import Path

import pytest
import torch
import yaml

from ajuste.learning.rl.rollout import sample
from ajuste.models.one_base import OneBase, Settings
from tasks.rl import loop, recorder
from tasks.rl.score import padding
from tests.invariants.decoders import decoder
from tests.made.tiny_ppo import CONFIG, config, count, tiny_one, tiny_prompts

ROOT = Path(__file__).parents[2]
ROW = [1, 40, 41, 42, 43, 5]


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("pads", [0, 1, 7])
def test_positions_count_from_a_rows_own_first_token(family: str, pads: int) -> None:
    """Beside a longer prompt a row is padded on the left; its continuation and log-probabilities are those alone."""
    torch.manual_seed(0)
    one = OneBase(decoder(family), Settings(r=4))
    longer = [[1, *range(50, 50 + len(ROW) - 1 + pads)]]
    alone, beside = (sample(one, prompts, 8, [], 0, 0.0) for prompts in ([ROW], [ROW, *longer]))
    assert beside.responses[0].tolist() == alone.responses[0].tolist()
    assert torch.allclose(beside.log_probs[0], alone.log_probs[0], atol=1e-5, rtol=0)
    one_row, two_rows = (
        one.policy_and_values(prompts, found.responses, found.mask, 1.0)
        for prompts, found in (([ROW], alone), ([ROW, *longer], beside))
    )
    for mine, same in zip(one_row, two_rows, strict=True):
        assert torch.allclose(mine[0], same[0], atol=1e-5, rtol=0)


def test_what_fills_up_a_batch_ends_no_response(tmp_path: Path) -> None:
    """The id of the padding is never one of the ends; the mask, not the id, says what was said."""
    for stops in ([0], [0, 1, 2], [2], []):
        assert padding(stops) not in stops
    seen = []

    def score(prompts: list[list[int]], responses: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        seen.append((responses, mask))
        return count(prompts, responses, mask)

    stops = list(range(3, 20))
    settings = config(updates=2)
    loop.train(tiny_one(), settings.algorithm(), tiny_prompts(), score, settings, 0, tmp_path, stops)
    cut = 0
    for responses, mask in seen:
        for row, real in zip(responses.tolist(), mask.sum(1).tolist(), strict=True):
            assert not any(token in stops for token in row[: real - 1])  # the first end is the last token
            assert not any(token in stops for token in row[real:])
            cut += real < len(row)
    assert cut > 3


def test_custom_ends_are_honoured(tmp_path: Path) -> None:
    """With no end at all every response runs on and is paid as one that lacks it; with every token an end, none is."""
    asked = config(updates=1, missing_end="replace", missing_end_penalty=3.0, record=[1])
    for stops, ended in (([], 0.0), (list(range(1, 64)), 1.0)):
        folder = tmp_path / str(ended)
        row = loop.train(tiny_one(), asked.algorithm(), tiny_prompts(), count, asked, 0, folder, stops).history[0]
        episodes = recorder.read(folder, 1).episodes
        assert row["ended"] == ended
        paid = episodes.rewards.sum(1) + row["beta"] * episodes.kl.sum(1)
        assert torch.allclose(paid, episodes.scores if ended else torch.full((8,), -3.0), atol=1e-5)


@pytest.mark.parametrize("key", ["top_k", "top_p", "min_new_tokens", "repetition_penalty"])
def test_samplers_that_change_the_distribution_are_unknown_keys(key: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){key}.*Extra inputs"):
        type(config())(**{**CONFIG, key: 1})


def test_the_reward_model_sees_its_comparisons_once() -> None:
    assert yaml.safe_load((ROOT / "params.yaml").read_text())["reward"]["epochs"] == 1
