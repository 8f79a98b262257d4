"""Missing is one thing and a whole number is one name, in every format: null, NaN, an absent key, an empty label."""

from pathlib import Path

import pandas as pd
import pytest

from ajuste.core.errors import DataError, UsageError
from ajuste.rows.read.values import class_of, looked_up, named
from tests.made.added import add, asked, jsonl, project, sentence, texts
from tests.made.stand_in import stand_in

GAP = [None, 1, 0, 1, 0, 1, 0, 1] * 5


@pytest.fixture(autouse=True)
def _project(tmp_path, monkeypatch):
    project(tmp_path, monkeypatch)
    stand_in(monkeypatch)


@pytest.mark.parametrize("form", ["csv", "tsv", "json", "jsonl", "parquet"])
@pytest.mark.parametrize("labels, classes", [((), ["0", "1"]), (("--labels", "0=neg,1=pos"), ["neg", "pos"])])
def test_labels_with_a_gap_are_whole_numbers_and_the_gap_is_a_missing_label(form, labels, classes):
    frame = pd.DataFrame({"text": [sentence(i) for i in range(40)], "label": GAP})
    assert frame["label"].dtype == "float64"
    name = f"gap.{form}"
    if form in ("csv", "tsv"):
        frame.to_csv(name, index=False, sep="," if form == "csv" else "\t")
    elif form == "parquet":
        frame.to_parquet(name)
    else:
        frame.to_json(name, orient="records", lines=form == "jsonl")
    found = add(name, *labels)
    assert found.set["labels"] == classes and f"classes: {classes[0]} 15, {classes[1]} 20" in found.said
    assert [row["reasons"] for row in found.quarantine] == [["unknown_label"]] * 5 and "(empty) 5" in found.said
    assert sorted(row["label"] for row in found.kept) == [0] * 15 + [1] * 20


def test_nan_null_and_an_absent_key_are_missing_labels_alike():
    rows = texts(40)
    rows[0]["label"], rows[1]["label"] = float("nan"), None
    del rows[2]["label"]
    rows[3]["label"] = ""
    assert add(jsonl("gap.jsonl", rows)).reasons() == {i: ["unknown_label"] for i in (1, 2, 3, 4)}


def test_a_missing_answer_is_an_empty_one_and_missing_names_are_none():
    rows = [{**row, "category": float("nan"), "source": None} for row in asked(40)]
    rows[3]["output"], rows[4]["output"], rows[5]["instruction"] = float("nan"), None, float("nan")
    found = add(jsonl("gap.jsonl", rows))
    assert found.reasons() == {4: ["empty_response"], 5: ["empty_response"], 6: ["empty_instruction"]}
    assert {(row["category"], row["source"]) for row in found.kept} == {("", "gap")}


def test_ratings_that_are_missing_are_not_there():
    rows = [{"prompt": f"What of {sentence(i)}?", "chosen": sentence(i + 500), "rejected": sentence(i + 900),
             "chosen_rating": float("nan"), "agreement": None} for i in range(40)]  # fmt: skip
    rows[7]["chosen"] = float("nan")
    assert add(jsonl("gap.jsonl", rows)).reasons() == {8: ["missing_response"]}


@pytest.mark.parametrize("value", [10**400, -(10**400), 1e308, float("inf"), "1e999"])
def test_ratings_that_no_sum_can_hold_are_bad_ones(value):
    rows = [{"text": sentence(i), "ratings": [i % 3, 1]} for i in range(60)]
    rows[7]["ratings"] = [value, value]
    assert add(jsonl("rated.jsonl", rows), "--prompt", "Joke.").reasons() == {8: ["bad_ratings"]}


def test_labels_that_find_no_row_are_refused_and_nothing_is_published():
    with pytest.raises(UsageError, match="--labels 2=neg,3=pos finds no row: the values of the label column are 1, 0"):
        add(jsonl("gap.jsonl", [{"text": sentence(i), "label": i % 3 and 1} for i in range(40)]),
            "--labels", "2=neg,3=pos")  # fmt: skip
    assert not Path("data/mine").exists()


def test_a_rare_class_is_an_error_with_three_ways_out():
    rows = texts(288, ("billing", "other")) + [{"text": sentence(900 + i), "label": "urgent"} for i in range(12)]
    with pytest.raises(DataError, match="urgent 12 of 300") as caught:
        add(jsonl("rare.jsonl", rows))
    for way in ("--labels billing,other,urgent (", "--labels billing,other,urgent=billing;", "--labels billing,other"):
        assert way in str(caught.value)
    assert add("rare.jsonl", "--labels", "billing,other,urgent").set["labels"] == ["billing", "other", "urgent"]
    assert len(add("rare.jsonl", "--replace", "--labels", "billing,other,urgent=billing").kept) == 300
    assert len(add("rare.jsonl", "--replace", "--labels", "billing,other").quarantine) == 12


def test_names():
    assert [named(value) for value in (1, 1.0, 0.5, True, "1", b"1", float("inf"))] == [
        "1", "1", "0.5", "true", None, None, "Infinity"]  # fmt: skip
    assert looked_up({"1": "pos"}, "1.0") == "pos" and looked_up({"1.0": "pos"}, "1") == "pos"
    assert class_of("1.50", ["1.5"], None) == "1.50" and class_of("2.0", ["2", "2.0"], None) == "2.0"
