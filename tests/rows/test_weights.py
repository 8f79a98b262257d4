"""Answers of weight 0: read, and not learnt, from the file to the mask; other weights are refused by name."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ajuste.cli.data import show_mask
from ajuste.learning.text.masking import fit
from ajuste.rows.split import SPLITS
from tasks.encode.instructions import InstructionsConfig, encode_instructions
from tests.made.added import add, asked, jsonl, project, sentence
from tests.made.stand_in import stand_in

CONFIG = InstructionsConfig(max_tokens=256, weights={}, rows=dict.fromkeys(SPLITS), batch_rows=64)


@pytest.fixture(autouse=True)
def _project(tmp_path, monkeypatch):
    project(tmp_path, monkeypatch)
    stand_in(monkeypatch)


def chats(count: int, role: str = "role", said: str = "content") -> list[list[dict]]:
    """Two exchanges each."""
    return [[{role: ("user", "assistant")[k % 2], said: f"{k} {sentence(4 * i + k)}"} for k in range(4)]
            for i in range(count)]  # fmt: skip


def encoded(base: Path, rows: list[dict], **changes) -> list[dict]:
    """What `data add`, validation and encoding make of the rows, in the order of the file."""
    found = add(jsonl("mine.jsonl", rows), "--replace")
    assert len(found.kept) == len(rows), found.quarantine
    encode_instructions(CONFIG.model_copy(update=changes), None, Path("out"), base, Path("encoded"))
    made = [row for split in SPLITS for row in pq.read_table(f"encoded/{split}.parquet").to_pylist()]
    return sorted(made, key=lambda row: int(row["location"].rsplit(":", 1)[1]))


def texts(base: Path, row: dict, trained: bool) -> str:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    pairs = zip(row["input_ids"], row["labels"], strict=True)
    return tokenizer.decode([token for token, label in pairs if (label != -100) == trained])


@pytest.mark.parametrize("key, value, form", [
    ("weight", 0, ("role", "content")), ("weight", 0.0, ("from", "value")), ("weight", "0", ("role", "content")),
    ("train", False, ("from", "value")), ("train", "false", ("role", "content"))])  # fmt: skip
def test_an_answer_of_weight_0_is_read_and_not_learnt(base, key, value, form):
    rows = [{"messages" if form[0] == "role" else "conversations": turns} for turns in chats(40, *form)]
    plain = encoded(base, rows)
    for number, at in ((3, 1), (5, 3)):
        rows[number][next(iter(rows[number]))][at][key] = value
    rows[7][next(iter(rows[7]))][1][key] = {"weight": 1, "train": True}[key]
    made = encoded(base, rows)
    for i, (row, before) in enumerate(zip(made, plain, strict=True)):
        assert row["input_ids"] == before["input_ids"]
        first, second = (f"{k} {sentence(4 * i + k)}" for k in (1, 3))
        learnt = texts(base, row, True)
        assert (first in learnt, second in learnt) == (i != 3, i != 5)
        assert (first in texts(base, row, False)) == (i == 3)
        assert row["reference"] == (first if i == 5 else second)
        assert first in texts(base, {**row, "input_ids": row["input_ids"][: row["prompt_tokens"]],
                                     "labels": [-100] * row["prompt_tokens"]}, False) or i == 5  # fmt: skip
        if i not in (3, 5):
            assert row["labels"] == before["labels"]


def test_show_mask_shows_it_dim(base, capsys):
    rows = [{"messages": turns} for turns in chats(40)]
    for row in rows:
        row["messages"][1]["weight"] = 0
    encoded(base, rows)
    Path("artifacts/encoded").mkdir(parents=True)
    Path("artifacts/base").mkdir()
    Path("encoded").rename("artifacts/encoded/instructions")
    Path("artifacts/base/decoder").symlink_to(base)
    show_mask.command(set="instructions", split="train", rows=1)
    _, row = capsys.readouterr().out.split("in [[ ]]", 1)
    dim, learnt = row.split("[[", 1)
    assert "1 " + dim.partition("1 ")[2].split("\n")[0] in dim and learnt.startswith("3 ") and "[[" not in learnt


def test_weights_stand_in_the_rows_and_only_in_a_set_that_has_them():
    rows = [{"messages": turns} for turns in chats(40)]
    found = add(jsonl("mine.jsonl", rows))
    assert set(found.kept[0]) == {"row_id", "messages", "category", "source", "location"}
    rows[3]["messages"][1]["weight"] = 0
    rows[3]["messages"].insert(0, {"role": "system", "content": " "})  # is dropped
    weighed = add(jsonl("mine.jsonl", rows), "--replace")
    by_line = {int(row["location"].rsplit(":", 1)[1]): row for row in weighed.kept}
    assert by_line[4]["weights"] == [1, 0, 1, 1] and by_line[5]["weights"] is None
    assert json.loads(Path("out/validation.json").read_text())["rows"]["with_answers_of_weight_0"] == 1
    assert {row["row_id"] for row in found.kept} - {row["row_id"] for row in weighed.kept} == {
        row["row_id"] for row in found.kept if row["location"].endswith(":4")}  # fmt: skip


@pytest.mark.parametrize("key, value, words", [
    ("weight", 0.5, "`weight` of message 2 of the messages is 0.5: only 0"), ("weight", -1, "is -1: only 0"),
    ("weight", [0], "`weight` of message 2"), ("train", "no", "`train` of message 2 of the messages is no: only 0")])
def test_other_weights_are_refused_by_name(key, value, words):
    rows = [{"messages": turns} for turns in chats(40)]
    rows[4]["messages"][1][key] = value
    found = add(jsonl("mine.jsonl", rows))
    assert found.reasons() == {5: ["unreadable_row"]} and words in found.quarantine[0]["detail"]


def test_a_row_of_which_nothing_is_learnt_is_no_row():
    rows = [{"messages": turns} for turns in chats(40)]
    for at in (1, 3):
        rows[4]["messages"][at]["weight"] = 0
    found = add(jsonl("mine.jsonl", rows))
    assert "no answer of the row is learnt" in found.quarantine[0]["detail"] and len(found.quarantine) == 1


@pytest.mark.parametrize("layout", ["chosen", "prompt"])
def test_a_comparison_has_no_use_for_weights(layout):
    rows = [{"prompt": chat[:3], "chosen": chat[3:], "rejected": [{"role": "assistant", "content": sentence(i + 900)}]}
            for i, chat in enumerate(chats(40))]  # fmt: skip
    rows[4][layout][0 if layout == "chosen" else 1]["weight"] = 0
    assert add(jsonl("mine.jsonl", rows)).reasons() == {5: ["unreadable_row"]}


def test_what_follows_the_last_learnt_answer_is_cut_first(base):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    turns = chats(1)[0]
    whole = fit(tokenizer, turns, 512)
    turns[3] = {**turns[3], "weight": 0}
    masked = fit(tokenizer, turns, 512)
    assert masked.input_ids == whole.input_ids and masked.prompt_tokens < whole.prompt_tokens
    one = fit(tokenizer, turns[:2], 512)
    cut = fit(tokenizer, turns, len(whole.input_ids) - 1)
    assert (cut.input_ids, cut.labels) == (one.input_ids, one.labels)
    assert cut.response_cut == len(whole.input_ids) - len(one.input_ids) and cut.length == whole.length
    assert fit(tokenizer, [{**turn, "weight": 0} for turn in turns], 512) is None


def test_alpaca_with_a_weight_of_the_row_is_quarantine():
    rows = asked(40)
    rows[4]["weight"] = 0
    assert add(jsonl("mine.jsonl", rows)).reasons() == {5: ["unreadable_row"]}
