"""`data add` says what the run would say, and emptiness is what a reader sees."""

import re
from collections import Counter
from pathlib import Path

import pytest

from ajuste.cli.data import trial
from ajuste.core.errors import DataError
from ajuste.rows.clean import visible
from ajuste.rows.encoded.encoding import unknown_warnings
from ajuste.rows.split import split_of, split_text, text_digest
from tests.cli.commands import ajuste_data
from tests.made.added import ROOT, add, asked, jsonl, project, sentence, texts
from tests.made.stand_in import stand_in

INVISIBLE = ["\u200b", "\u2060\ufeff", "\u00ad", "\u3164", "\u2800\u200d", "\ufe0f\U000e0041"]


@pytest.fixture(autouse=True)
def _project(tmp_path, monkeypatch):
    project(tmp_path, monkeypatch)
    stand_in(monkeypatch)


def test_what_the_run_would_stop_at_is_refused_with_share_and_first_places():
    rows = [{"conversations": [{"from": "human", "value": row["instruction"]}, {"from": name, "value": row["output"]}]}
            for row, name in zip(asked(40), ["gpt", "bing", "gpt", "gpt"] * 10, strict=True)]  # fmt: skip
    with pytest.raises(DataError, match=r"10 of 40 rows are bad, .* 0.15: role_order 10, 25% \(first: .*mine.jsonl:2: "
                                        r"turns: user bing\); roles that are not known, .* role_order: `bing` 10$"):
        add(jsonl("mine.jsonl", rows))
    assert not Path("data/mine").exists() and not list(Path().glob("data.*"))


def test_what_is_kept_is_said_of_a_set_as_it_will_be():
    rows = texts(200)
    rows[3]["text"], rows[9] = "", rows[4]
    found = add(jsonl("mine.jsonl", rows))
    assert "validation keeps 198 of 200 rows: train " in found.said
    assert "quarantine: empty_text 1, exact_duplicate 1" in found.said
    more = [{"text": "", "label": "neg"}] * 30 + [{"text": sentence(i + 5000), "label": "pos"} for i in range(5)]
    said = add(jsonl("more.jsonl", more)).said
    assert "validation keeps 203 of 235 rows: train " in said and "empty_text 31, exact_duplicate 1" in said
    with pytest.raises(DataError, match=r"the run would stop .*data/mine: 72 of 275 rows are bad.*empty_text 71, 26% "
                                        r"\(first: data/mine/mine.jsonl:4\); exact_duplicate 1, 0%"):
        add(jsonl("worse.jsonl", [{"text": " ", "label": "neg"}] * 40))
    assert not Path("data/mine/worse.jsonl").exists() and Path("data/mine/more.jsonl").exists()


def test_of_a_large_file_a_sample_is_checked_and_all_rows_are_counted(monkeypatch):
    monkeypatch.setattr(trial, "TRIAL_ROWS", 100)
    rows = texts(400)
    places = [split_of(text_digest(split_text(row["text"]))) for row in rows]
    rows[places.index(0)]["label"] = "rare"
    splits = Counter(places)
    found = add(jsonl("mine.jsonl", rows), "--labels", "neg,pos,rare")
    assert f"all rows of the file: train {splits[0]}, validation {splits[1]}, test {splits[2]}" in found.said
    share = re.search("of a sample of ([0-9]+) rows of the set validation keeps ([0-9]+)", found.said)
    assert 60 < int(share[1]) < 140 and share[1] == share[2]
    assert "note: test has no row of class rare" in found.said and "train has no row" not in found.said


@pytest.mark.parametrize("kind, study", [("words", "ner"), ("questions", "qa")])
def test_words_and_questions_are_tried_with_the_params_of_their_study(kind, study):
    def row(i: int) -> dict:
        words = sentence(i).split()
        if kind == "words":
            return {"words": words, "tags": ["B-PER", "I-PER", *["O"] * 5]}
        return {"question": f"Who {i}?", "context": sentence(i), "answers": words[:1], "answer_start": 0}

    assert "validation keeps" not in add_only(jsonl("mine.jsonl", [row(i) for i in range(40)]))  # no such study here
    Path("studies", study).mkdir(parents=True)
    Path("studies", study, "params.yaml").write_text((ROOT / "studies" / study / "params.yaml").read_text())
    rows = [row(i) for i in range(60)]
    rows[3]["tags" if kind == "words" else "answer_start"] = [] if kind == "words" else 5
    said = add_only(jsonl("mine.jsonl", rows), "--replace")
    assert "validation keeps 59 of 60 rows: train " in said and "quarantine: unreadable_row 1" in said
    for i in range(30):
        rows[i] = {**rows[i], "tags" if kind == "words" else "answers": []}
    with pytest.raises(DataError, match=r"30 of 60 rows are bad.*unreadable_row 30, 50% \(first: data/mine/mine"):
        add_only(jsonl("mine.jsonl", rows), "--replace")


def test_general_text_alone_is_no_set_to_train_on():
    rows = [{"text": sentence(i)} for i in range(60)]
    assert "note: general text alone" in add_only(jsonl("mine.jsonl", rows), "--layout", "text")
    assert "note: general text alone" not in add_only(jsonl("asked.jsonl", asked(60)))


def add_only(name: str, *args: str) -> str:
    return ajuste_data("add", "mine", name, *args)


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
