"""tasks/forgetting/scores.py: scores against brute force and closed forms, F and its sign, and what is refused."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from ajuste.core.errors import DataError, UsageError
from ajuste.core.params import Compute
from ajuste.learning.statistics import metrics
from ajuste.models import decoder
from ajuste.models.folder import CARD
from ajuste.rows.control import Item, read_control
from tasks.forgetting.scores import ForgettingConfig, _question, choose, forgetting, pick, score, summarise
from tests.made.tiny_decoders import card, tiny_adapter, tiny_base, tiny_full

COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)
CONFIG = ForgettingConfig(
    dtype="float32", bootstrap=200, text_rows=None, choice_rows=None, max_tokens=64, batch_tokens=150
)
TEXTS = [
    "The film was slow, but the story is warm.",
    "A list of animals: dogs, cats and one computer that writes data all day and every week, over and over again.",
    "Why?",
]
BOOLQ = [
    {"question": "is the film good", "passage": "The film is good.", "answer": "True", "title": "Film"},
    {"question": "is it cold?", "passage": "It is warm.", "answer": "False"},
    {"question": "can they write", "passage": "They write every day of the year.", "answer": True},
]
PIQA = [
    {"question": "make food", "options": "A. use fire or oil \nB. use a computer", "answer": "A. use fire or oil"},
    {"question": "learn", "options": "A. sleep\nB. read good\nbooks", "answer": "B. read good\nbooks"},
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base") / "decoder")


@pytest.fixture
def control(tmp_path: Path) -> Path:
    return write_control(tmp_path / "control", [{"text": text} for text in TEXTS], BOOLQ, PIQA)


def write_control(folder: Path, texts: list, boolq: list, piqa: list) -> Path:
    folder.mkdir()
    files = []
    for name, layout, rows in (("general", "text", texts), ("boolq", "boolq", boolq), ("piqa", "piqa", piqa)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        files.append({"path": f"{name}.jsonl", "format": "jsonl", "layout": layout, "name": name, "source": "path:x"})
    (folder / "set.yaml").write_text(json.dumps({"kind": "control", "licence": "own", "files": files}))
    return folder


# --- reading ----------------------------------------------------------------------------------------------------------


def test_the_layouts_become_items(control: Path) -> None:
    sets = read_control(control)
    assert {item.text for item in sets["general"]} == set(TEXTS)
    asked = {item.text: (item.choices, item.answer) for item in sets["boolq"]}
    assert asked["The film is good.\nQuestion: is the film good?\nAnswer:"] == ((" no", " yes"), 1)
    assert asked["It is warm.\nQuestion: is it cold?\nAnswer:"] == ((" no", " yes"), 0)
    assert asked["They write every day of the year.\nQuestion: can they write?\nAnswer:"][1] == 1
    asked = {item.text: (item.choices, item.answer) for item in sets["piqa"]}
    assert asked["Question: make food\nAnswer:"] == ((" use fire or oil", " use a computer"), 0)
    assert asked["Question: learn\nAnswer:"] == ((" sleep", " read good\nbooks"), 1)


def test_the_order_of_the_file_decides_nothing(control: Path, tmp_path: Path) -> None:
    turned = write_control(tmp_path / "turned", [{"text": text} for text in TEXTS[::-1]], BOOLQ[::-1], PIQA[::-1])
    assert read_control(turned) == read_control(control)


@pytest.mark.parametrize(
    "name,row,what",
    [
        ("general", {"title": "x"}, "column `text`"),
        ("general", {"text": " "}, "column `text`"),
        ("boolq", {**BOOLQ[0], "answer": "maybe"}, "`answer` is 'maybe'"),
        ("boolq", {"question": "x", "answer": "True"}, "column `passage`"),
        ("piqa", {**PIQA[0], "options": "use fire"}, "`options`"),
        ("piqa", {**PIQA[0], "options": "A. one\nC. two"}, "`options`"),
        ("piqa", {**PIQA[0], "answer": "C. no"}, "`answer` is none of the options"),
    ],
)
def test_a_broken_row_is_named_by_file_and_line(control: Path, name: str, row: dict, what: str) -> None:
    path = control / f"{name}.jsonl"
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=what) as error:
        read_control(control)
    assert f"{name}.jsonl line {len(path.read_text().splitlines())}" in str(error.value)


# --- scores -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def log_p(model: nn.Module, ids: list[int]) -> np.ndarray:
    """log p of every token but the first, the row alone in a plain forward."""
    logits = torch.log_softmax(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].double(), dim=-1)
    return logits.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


def test_scores_equal_brute_force(base: Path, control: Path) -> None:
    model, tokenizer = decoder.load_base(base)
    plain, _ = decoder.load_base(base)
    sets = read_control(control)
    table, tokens = score(model, tokenizer, sets, CONFIG)
    found = {(row["set"], row["row_id"]): row for row in table.to_pylist()}
    read = 0
    for item in (item for items in sets.values() for item in items):
        prompt = tokenizer(item.text, add_special_tokens=False)["input_ids"]
        row = found[item.set, item.row_id]
        if item.task == "text":
            each = log_p(plain, prompt[:64])
            assert (row["score"], row["weight"]) == (pytest.approx(each.mean(), abs=1e-5), len(each))
            read += len(prompt[:64])
            continue
        sums = []
        for choice in item.choices:
            tail = tokenizer(choice, add_special_tokens=False)["input_ids"]
            sums.append(log_p(plain, [*prompt, *tail])[-len(tail) :].sum())
            read += len(tail)
        read += len(prompt)
        if item.set == "piqa":
            sums = [total / len(choice.strip()) for total, choice in zip(sums, item.choices, strict=True)]
        assert abs(sums[0] - sums[1]) > 1e-4  # no tie that rounding could turn
        assert (row["score"], row["weight"]) == (float(np.argmax(sums) == item.answer), 1.0)
    assert tokens == read


def test_a_long_question_is_cut_at_its_beginning(base: Path) -> None:
    tokenizer = decoder.load_base(base)[1]
    text, choices = "the plot is slow " * 40 + "The film is good? Answer:", (" no", " yes")
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    prompt, tails = _question(tokenizer, Item("q", "0", text, choices, 0), 64)
    assert [tokenizer.decode(tail) for tail in tails] == list(choices)
    assert len(prompt) + max(map(len, tails)) == 64
    assert prompt == whole[-len(prompt) :]
    with pytest.raises(DataError, match="control set q"):
        _question(tokenizer, Item("q", "0", text, (" no", " yes" * 100), 0), 64)


def test_a_uniform_model_has_a_perplexity_of_its_vocabulary(base: Path, control: Path, tmp_path: Path) -> None:
    model, tokenizer = decoder.load_base(base)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)  # all logits are 0
    table, _ = score(model, tokenizer, read_control(control), CONFIG)
    report = summarise(table, 200, 0)["sets"]
    assert report["general"]["perplexity"] == pytest.approx(model.config.vocab_size, rel=1e-5)
    assert report["general"]["high"] - report["general"]["low"] < 1e-5
    assert report["boolq"]["value"] == pytest.approx(1 / 3)  # a tie goes to the first choice, "no"


def test_a_choice_is_picked_by_its_sum_or_by_character() -> None:
    plain = Item("q", "0", "x", (" ab", " abcdefgh"), 1)
    long = Item("q", "0", "x", (" ab", " abcdefgh"), 1, by_length=True)
    assert (pick([-3.0, -4.0], plain), pick([-3.0, -4.0], long)) == (0, 1)
    assert (pick([-1.0, -3.0], long), pick([-2.0, -2.0], plain)) == (1, 0)


# --- F ----------------------------------------------------------------------------------------------------------------


def run(base: Path, control: Path, out: Path, model: Path, before: Path | None = None, **changes) -> dict:
    config = ForgettingConfig(**{**CONFIG.model_dump(), **changes})
    return forgetting(config, COMPUTE, model, base, control, out, before)


def test_F_is_before_minus_after_on_the_same_items(base: Path, control: Path, tmp_path: Path) -> None:
    before = run(base, control, tmp_path / "before", base)
    tiny_full(base, tmp_path / "full")
    after = run(base, control, tmp_path / "after", tmp_path / "full", tmp_path / "before")
    assert "F" not in before
    for name in ("general", "boolq", "piqa"):
        gap = before["sets"][name]["value"] - after["sets"][name]["value"]
        assert after["F"][name]["value"] == pytest.approx(gap, abs=1e-9)
        assert after["F"][name]["low"] <= after["F"][name]["value"] <= after["F"][name]["high"]
    one, two = (pq.read_table(tmp_path / name / "rows.parquet").to_pylist() for name in ("before", "after"))
    lost = np.array([x["score"] - y["score"] for x, y in zip(one, two, strict=True) if x["set"] == "general"])
    tokens = np.array([x["weight"] for x in one if x["set"] == "general"])
    counts = metrics.resamples(len(lost), 200, 0)
    drawn = [np.average(lost, weights=tokens * count) for count in counts]
    interval = np.percentile(drawn, [2.5, 97.5])
    assert [after["F"]["general"]["low"], after["F"]["general"]["high"]] == pytest.approx(list(interval))


def test_F_is_above_zero_when_general_text_got_less_likely(base: Path, control: Path, tmp_path: Path) -> None:
    """The damaged model is a random one that is sure of itself."""
    model, tokenizer = decoder.load_base(base)
    with torch.no_grad():
        model.model.norm.weight *= 20
    decoder.save_whole(model, tokenizer, tmp_path / "damaged", card(base, "full"))
    run(base, control, tmp_path / "before", base)
    after = run(base, control, tmp_path / "after", tmp_path / "damaged", tmp_path / "before")
    assert after["F"]["general"]["low"] > 0
    assert after["sets"]["general"]["perplexity"] == pytest.approx(math.exp(-after["sets"]["general"]["value"]))


@pytest.mark.parametrize("method", ["lora", "prefix", "bottleneck"])
def test_an_adapter_is_scored_on_its_base(base: Path, control: Path, tmp_path: Path, method: str) -> None:
    run(base, control, tmp_path / "before", base)
    tiny_adapter(base, tmp_path / "adapter", method)
    after = run(base, control, tmp_path / "after", tmp_path / "adapter", tmp_path / "before")
    assert after["F"]["general"]["value"] != 0


def test_nothing_is_forgotten_by_the_base_itself_and_two_runs_are_the_same_bytes(
    base: Path, control: Path, tmp_path: Path
) -> None:
    shutil.copytree(base, tmp_path / "same")
    (tmp_path / "same" / CARD).write_text(json.dumps(card(base, "full")))
    run(base, control, tmp_path / "before", base)
    for name in ("one", "two"):
        after = run(base, control, tmp_path / name, tmp_path / "same", tmp_path / "before")
        assert all(f == {"value": 0.0, "low": 0.0, "high": 0.0} for f in after["F"].values())
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
    one, two = (pq.read_table(tmp_path / name / "rows.parquet") for name in ("before", "one"))
    assert one.equals(two)


def test_items_are_chosen_by_task(control: Path) -> None:
    sets = read_control(control)
    config = ForgettingConfig(**{**CONFIG.model_dump(), "text_rows": 2, "choice_rows": 1})
    chosen = choose(sets, config)
    assert [len(items) for items in chosen.values()] == [2, 1, 1]
    assert chosen["general"] == sets["general"][:2]


def test_what_does_not_fit_is_refused(base: Path, control: Path, tmp_path: Path) -> None:
    tiny_full(base, tmp_path / "full")
    with pytest.raises(UsageError, match="run stage `forgetting_base`"):
        run(base, control, tmp_path / "out", tmp_path / "full", tmp_path / "nowhere")
    run(base, control, tmp_path / "before", base, text_rows=1)
    with pytest.raises(UsageError, match="other items"):
        run(base, control, tmp_path / "out", tmp_path / "full", tmp_path / "before")
    with pytest.raises(UsageError, match="ajuste.json is missing"):
        run(base, control, tmp_path / "out", tmp_path)
    other = tiny_base(tmp_path / "other", seed=1)
    tiny_adapter(base, tmp_path / "adapter")
    with pytest.raises(UsageError, match="differs in its weights"):
        run(other, control, tmp_path / "out", tmp_path / "adapter")
