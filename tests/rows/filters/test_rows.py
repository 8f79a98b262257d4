"""The rows of a set without those in which something is found: kept + removed = rows, whatever the layout and file."""

import json
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ajuste.core.errors import DataError, UsageError
from ajuste.rows.decontaminate import ngrams_of
from ajuste.rows.filters.filters import made
from ajuste.rows.filters.rows import filtered, scanned
from ajuste.rows.layouts.instructions import to_row
from ajuste.rows.read.records import read_records
from ajuste.rows.sets.instructions import read_set
from tests.rows.filters.texts import RIGHT

EVERY = made(["email", "phone", "card", "iban", "national_id", "ip", "phrase"], ["ES"], ["launch code"])
SET = """\
kind: instructions
licence: MIT
files:
- {path: a.jsonl, format: jsonl, layout: alpaca, source: 'path:a.jsonl'}
- {path: b.csv, format: csv, layout: prompt_completion, columns: {prompt: q, completion: a}, source: 'path:b.csv'}
- {path: c.txt, format: txt, layout: text, name: wiki, source: 'path:c.txt'}
"""
ROWS = [
    {"instruction": "Say hello.", "input": "", "output": "Hello."},
    {"instruction": "Whose card is it?", "input": "4111 1111 1111 1111", "output": "Ana's."},
    {"instruction": "Write to her.", "input": "", "output": "At ana@example.com or bob@example.com.", "id": 7},
    {"instruction": "Say it.", "input": "", "output": "The LAUNCH code.", "unused": "a@b.org"},
    {"instruction": "Nothing here.", "input": "", "output": "Fine.", "unused": "ana@example.com"},
]


def a_set(folder: Path, name: str = "mine") -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "set.yaml").write_text(SET)
    lines = [json.dumps(row) for row in ROWS] + ["{broken"]
    (folder / name / "a.jsonl").write_text("\n".join(lines) + "\n")
    (folder / name / "b.csv").write_text('q,a\nAsk,"Call +34 912 34 56 78"\nAsk more,"It is,\nfine"\n')
    (folder / name / "c.txt").write_text("A text of a page.\n\nIts owner: 12345678Z.\n\nThe end of it all, at last.\n")
    return folder / name


def test_what_is_removed_and_why(tmp_path: Path) -> None:
    folder = a_set(tmp_path / "data")
    report = filtered(folder, EVERY, [], tmp_path / "new", tmp_path / "why")
    assert report["rows"] == {"read": 11, "kept": 5, "removed": 6}
    assert report["kinds"] == {
        "card": {"rows": 1, "findings": 1}, "email": {"rows": 1, "findings": 2},
        "national_id": {"rows": 1, "findings": 1}, "phone": {"rows": 1, "findings": 1},
        "phrase": {"rows": 1, "findings": 1}, "unreadable": {"rows": 1, "findings": 1},
    }  # fmt: skip
    assert json.loads((tmp_path / "why/filter.json").read_text()) == report
    assert "ana" not in (tmp_path / "why/filter.json").read_text()
    removed = pq.read_table(tmp_path / "why/quarantine.parquet").to_pylist()
    assert {row["location"].partition("mine/")[2]: row["reasons"] for row in removed} == {
        "a.jsonl:2": ["card"], "a.jsonl:3": ["email"], "a.jsonl:4": ["phrase"], "a.jsonl:6": ["unreadable"],
        "b.csv:2": ["phone"], "c.txt:3": ["national_id"],
    }  # fmt: skip
    assert [row["detail"] for row in removed][1] == "email 2" and "ana@example.com" in removed[1]["text"]
    assert scanned(folder, EVERY) == report, "a scan counts the same, and writes nothing"


def test_the_new_set_is_read_as_the_old_one_was(tmp_path: Path) -> None:
    folder = a_set(tmp_path / "data")
    filtered(folder, EVERY, [], tmp_path / "new", tmp_path / "why")

    def rows(folder: Path) -> list[tuple]:
        return [
            (file.name or Path(file.path).stem, str(row.messages))
            for file in read_set(folder).files
            for batch in read_records(folder / file.path, file.format, 100)
            for row in (to_row(record, file.layout, file.columns) for record in batch)
        ]

    old, new = rows(folder), rows(tmp_path / "new")
    assert len(new) == 5 and [row for row in old if row in new] == new
    filtered(folder, EVERY, [], tmp_path / "again", tmp_path / "why2")
    for path in (tmp_path / "new").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
    for path in (tmp_path / "why").iterdir():
        assert path.read_bytes() == (tmp_path / "why2" / path.name).read_bytes(), path.name


def test_copies_of_a_set_that_judges(tmp_path: Path) -> None:
    folder = a_set(tmp_path / "data")
    control = tmp_path / "data/control"
    control.mkdir()
    (control / "set.yaml").write_text(
        "kind: control\nlicence: MIT\nfiles:\n"
        "- {path: t.jsonl, format: jsonl, layout: text, name: t, source: 'path:t.jsonl'}\n"
    )
    (control / "t.jsonl").write_text(json.dumps({"text": "And so THE end of it all -- at last!"}) + "\n")
    against = [ngrams_of(tmp_path / "data", "control", 5)]
    report = filtered(folder, made([]), against, tmp_path / "new", tmp_path / "why")
    assert report["kinds"]["evaluation"] == {"rows": 1, "findings": 1}
    removed = pq.read_table(tmp_path / "why/quarantine.parquet").to_pylist()
    assert removed[-1]["detail"] == "shares words with data/control/t.jsonl:1"


def test_what_cannot_be_filtered_is_said(tmp_path: Path) -> None:
    folder = a_set(tmp_path / "data")
    (folder / "a.jsonl").write_text(json.dumps(ROWS[1]) + "\n")
    (folder / "b.csv").write_text("q,a\nAsk,a@b.org\n")
    (folder / "c.txt").write_text("a@b.org\n")
    with pytest.raises(DataError, match="not one of 3 rows is left"):
        filtered(folder, EVERY, [], tmp_path / "new", tmp_path / "why")
    (folder / "set.yaml").write_text("kind: words\n")
    with pytest.raises(UsageError, match="kind words: kinds classification, instructions, preferences are filtered"):
        scanned(folder, EVERY)


EXAMPLES = [value for values in RIGHT.values() for value in values]
VALUES = st.sampled_from([*EXAMPLES, "launch code", "no", "\udc80", "\n"])
TEXT = st.one_of(VALUES, st.text(max_size=10))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.fixed_dictionaries({"prompt": TEXT, "completion": TEXT}), min_size=1, max_size=6))
def test_kept_and_removed_are_the_rows(rows: list[dict]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "data/mine"
        folder.mkdir(parents=True)
        (folder / "set.yaml").write_text(
            "kind: instructions\nlicence: MIT\nfiles:\n"
            "- {path: a.jsonl, format: jsonl, layout: prompt_completion, source: 'path:a.jsonl'}\n"
        )
        (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        clean = [row for row in rows if not any(EVERY.find(text) for text in row.values())]
        new, why = Path(scratch) / "new", Path(scratch) / "why"
        if not clean:
            with pytest.raises(DataError, match="not one"):
                filtered(folder, EVERY, [], new, why)
            return
        report = filtered(folder, EVERY, [], new, why)
        assert report["rows"] == {"read": len(rows), "kept": len(clean), "removed": len(rows) - len(clean)}
        assert [json.loads(line) for line in (new / "a.jsonl").read_text().splitlines()] == clean
        assert pq.read_table(why / "quarantine.parquet").num_rows == len(rows) - len(clean)
