"""Sets of tagged words and of questions through validation and encoding: what stays, what leaves and why."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from ajuste.core.errors import DataError
from ajuste.core.params import Compute
from ajuste.rows.encoded.questions import encode_questions
from ajuste.rows.encoded.words import encode_words
from ajuste.rows.split import SPLITS
from tasks.encode.spans import SpansConfig, encode_spans
from tasks.validate.questions import QuestionsConfig, validate_questions
from tasks.validate.words import WordsConfig, validate_words
from tests.made.tiny_classifiers import tiny_base

COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)
SHARED = {"set": "mine", "sample": 1.0, "near_duplicate_jaccard": 0.8, "max_quarantine_share": 0.5, "batch_rows": 7}
COLOURS = "red green blue black white amber violet olive ivory coral".split()
THINGS = "boat house river lamp table garden piano letter engine window".split()


def write(folder: Path, kind: str, rows: list[dict], **more) -> Path:
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = {"path": "a.jsonl", "format": "jsonl", "source": "path:a.jsonl"}
    (folder / "set.yaml").write_text(yaml.safe_dump({"kind": kind, "licence": "own", **more, "files": [file]}))
    return folder


def kept(out: Path) -> list[dict]:
    return [row for split in SPLITS for row in pq.read_table(out / f"{split}.parquet").to_pylist()]


def reasons(out: Path) -> dict[str, list[str]]:
    """line -> why it is in quarantine."""
    rows = pq.read_table(out / "quarantine.parquet").to_pylist()
    return {row["location"].rpartition(":")[2]: row["reasons"] for row in rows}


def sentences() -> list[dict]:
    """A hundred different ones."""
    return [{"words": [f"{a}", f"{b}", "near", f"{b[::-1]}{a}"], "tags": ["O", "B-LOC", "O", "B-PER"]}
            for a in COLOURS for b in THINGS]  # fmt: skip


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    good = sentences()
    bad = [good[0], {**good[1], "tags": ["O"] * 4}, {"words": ["x", "y"], "tags": ["O", "B-ORG"]},
           {"words": ["z"], "tags": []}, {"words": ["w"] * 60, "tags": ["O"] * 60}]  # fmt: skip
    folder = tmp_path_factory.mktemp("words")
    data = write(folder / "data/mine", "words", good + bad, labels=["O", "B-LOC", "I-LOC", "B-PER"])
    validate_words(WordsConfig(**SHARED, max_words=50), COMPUTE, data, folder / "out")
    return folder / "out"


def test_every_bad_sentence_leaves_with_its_reason(tagged: Path) -> None:
    assert reasons(tagged) == {
        "101": ["exact_duplicate"], "102": ["conflicting_label"], "2": ["conflicting_label"],
        "103": ["unknown_tag"], "104": ["unreadable_row"], "105": ["over_long"],
    }  # fmt: skip
    rows = kept(tagged)
    assert len(rows) == 99 and len({row["row_id"] for row in rows}) == 99
    assert all(pq.read_table(tagged / f"{split}.parquet").num_rows for split in SPLITS)
    report = json.loads((tagged / "validation.json").read_text())
    assert report["rows"] == {"read": 105, "kept": 99, "quarantined": 6, "exact_duplicates": 1, "near_duplicates": 0}
    assert sum(split["tags"]["B-PER"] for split in report["splits"].values()) == 99


def test_validated_words_are_encoded_in_their_order(tagged: Path, tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    report = encode_spans(SpansConfig(max_tokens=64), encode_words, tagged, base, tmp_path / "out")
    labels = json.loads((tmp_path / "out/labels.json").read_text())
    for split in SPLITS:
        name = f"{split}.parquet"
        before, after = (pq.read_table(folder / name).to_pylist() for folder in (tagged, tmp_path / "out"))
        assert [row["row_id"] for row in after] == [row["row_id"] for row in before]
        assert [[labels[i] for i in row["labels"] if i >= 0] for row in after] == [row["tags"] for row in before]
        assert report["splits"][split]["rows"] == len(before) and report["splits"][split]["rows_truncated"] == 0


def questions() -> list[dict]:
    """Two questions about each of fifty contexts."""
    rows = []
    for a in COLOURS:
        for b in THINGS[:5]:
            context = f"The {b} of {a[::-1]}{b[::-1]} is {a}, and {b[::-1]} {a}s follow {a[::-1]}."
            row = {"context": context, "answers": [a], "answer_start": context.index(f" {a},") + 1}
            rows += [{"question": f"What is the {b} like?", **row}, {"question": f"Which colour has the {b}?", **row}]
    return rows


def test_questions_about_one_context_stand_in_one_split(tmp_path: Path) -> None:
    good = questions()
    bad = [good[0], {**good[2], "answers": ["The"], "answer_start": 0}, {**good[4], "answer_start": 1}]
    data = write(tmp_path / "data/mine", "questions", good + bad)
    validate_questions(QuestionsConfig(**SHARED, max_chars=500), COMPUTE, data, tmp_path / "out")
    found = reasons(tmp_path / "out")
    assert found["101"] == ["exact_duplicate"] and found["102"] == found["3"] == ["conflicting_label"]
    assert found["103"] == ["unreadable_row"]
    splits = {split: {row["context"] for row in pq.read_table(tmp_path / f"out/{split}.parquet").to_pylist()}
              for split in SPLITS}  # fmt: skip
    assert all(splits.values()) and not splits["train"] & (splits["validation"] | splits["test"])
    rows = kept(tmp_path / "out")
    assert max(sum(row["context"] == other["context"] for other in rows) for row in rows) == 2
    base = tiny_base(tmp_path / "base")
    encode_spans(SpansConfig(max_tokens=200), encode_questions, tmp_path / "out", base, tmp_path / "encoded")
    for row in pq.read_table(tmp_path / "encoded/train.parquet").to_pylist():
        first, last = row["offsets"][2 * row["start"]], row["offsets"][2 * row["end"] + 1]
        assert row["context"][first:last] == row["answers"][0]


def test_too_many_bad_rows_stop_the_run(tmp_path: Path) -> None:
    data = write(tmp_path / "data/mine", "questions", [{**row, "answer_start": 999} for row in questions()[:9]])
    with pytest.raises(DataError, match="9 of 9 rows are bad"):
        validate_questions(QuestionsConfig(**SHARED, max_chars=500), COMPUTE, data, tmp_path / "out")
