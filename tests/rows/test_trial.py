"""`data add` says what the run would say, and emptiness is what a reader sees."""

from pathlib import Path

import pytest

from ajuste.core.errors import DataError
from ajuste.rows.clean import visible
from ajuste.rows.encoded.encoding import unknown_warnings
from ajuste.rows.split import split_of, split_text, text_digest
from tests.made.added import add, asked, jsonl, project, sentence, texts

INVISIBLE = ["\u200b", "\u2060\ufeff", "\u00ad", "\u3164", "\u2800\u200d", "\ufe0f\U000e0041"]


@pytest.fixture(autouse=True)
def _project(tmp_path, monkeypatch):
    project(tmp_path, monkeypatch)


def test_what_the_run_would_stop_at_is_refused_with_share_and_first_places():
    rows = [{"conversations": [{"from": "human", "value": row["instruction"]}, {"from": name, "value": row["output"]}]}
            for row, name in zip(asked(40), ["gpt", "bing", "gpt", "gpt"] * 10, strict=True)]  # fmt: skip
    with pytest.raises(DataError, match=r"10 of 40 rows are bad, .* 0.15: role_order 10 \(first: .*mine.jsonl:2\)$"):
        add(jsonl("mine.jsonl", rows))
    assert not Path("data/mine").exists() and not list(Path().glob("data.*"))


def test_what_is_kept_is_said_and_a_set_that_is_extended_is_for_the_run():
    rows = texts(200)
    rows[3]["text"], rows[9] = "", rows[4]
    found = add(jsonl("mine.jsonl", rows))
    assert "validation keeps 198 of 200 rows: train " in found.said
    assert "quarantine: empty_text 1, exact_duplicate 1" in found.said
    more = [{"text": "", "label": "neg"}] * 30 + [{"text": sentence(i + 5000), "label": "pos"} for i in range(5)]
    assert "validation keeps" not in add(jsonl("more.jsonl", more)).said


def test_ten_rows_are_few_and_one_class_is_none():
    train = [text for text in map(sentence, range(60)) if split_of(text_digest(split_text(text))) == 0][:4]
    with pytest.raises(DataError, match="4 rows are kept, split into .* has none, .*give at least some 100 rows"):
        add(jsonl("four.jsonl", [{**row, "text": text} for row, text in zip(texts(4), train, strict=True)]))
    assert "note: 90 rows are few: figures on " in add(jsonl("ninety.jsonl", texts(90))).said
    with pytest.raises(DataError, match="1 classes"):
        add(jsonl("one.jsonl", texts(40, ("only",))), "--replace")


@pytest.mark.parametrize("text", INVISIBLE)
def test_a_text_that_nobody_sees_is_empty(text):
    rows = texts(40)
    rows[4]["text"] = text
    assert add(jsonl("mine.jsonl", rows)).reasons() == {5: ["empty_text"]}


def test_an_answer_or_response_that_nobody_sees_is_missing():
    rows = asked(40)
    rows[4]["output"], rows[5]["instruction"] = INVISIBLE[0], INVISIBLE[1]
    assert add(jsonl("mine.jsonl", rows)).reasons() == {5: ["empty_response"], 6: ["empty_instruction"]}
    rows = [{"prompt": f"What of {sentence(i)}?", "chosen": sentence(i + 500), "rejected": sentence(i + 900)}
            for i in range(40)]  # fmt: skip
    rows[4]["chosen"] = INVISIBLE[0]
    assert add(jsonl("pairs.jsonl", rows), "--replace").reasons() == {5: ["missing_response"]}


def test_visible():
    assert [visible(text) for text in ("", " \n", " a ", "a\u200bb", "é", *INVISIBLE)] == [0, 0, 1, 2, 1] + [0] * 6


def test_classes_that_look_alike_are_told():
    found = add(jsonl("mine.jsonl", texts(60, ("caf\u00e9", "cafe\u0301", "tea"))))
    assert "classes that look alike, are they one? cafe\\u0301, caf\\xe9" in found.said


@pytest.mark.parametrize("unknown, share, warned", [(2, 0.02, False), (3, 0.02, True), (92, 0.95, False)])
def test_unknown_tokens_are_warned_about_above_a_share(unknown, share, warned):
    splits = {"train": {"unknown_tokens": unknown, "tokens": 60}, "test": {"unknown_tokens": 0, "tokens": 40}}
    found = unknown_warnings(splits, share)
    assert [f"{unknown}% of the tokens are unknown to the base ({unknown} of 100)" in line for line in found] == [
        True] * warned  # fmt: skip
