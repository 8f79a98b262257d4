"""Columns as files have them: two of one name, names that would steer a terminal, lines that are no objects."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ajuste.core.errors import DataError
from ajuste.rows.read.files import shown_name
from tests.made.added import add, asked, jsonl, project, sentence, texts
from tests.made.stand_in import stand_in


@pytest.fixture(autouse=True)
def _project(tmp_path, monkeypatch):
    project(tmp_path, monkeypatch)
    stand_in(monkeypatch)


@pytest.mark.parametrize("rows", [texts(40), asked(40)])
def test_two_columns_of_one_name_are_refused_where_they_are_needed_alone(rows):
    columns = {name: pa.array([row[name] for row in rows]) for name in rows[0]}
    more = pa.array(["x"] * 40)
    pq.write_table(pa.table([*columns.values(), more, more], names=[*columns, "more", "more"]), "more.parquet")
    assert len(add("more.parquet").kept) == 40
    first = next(iter(columns))
    pq.write_table(pa.table([*columns.values(), more], names=[*columns, first]), "twice.parquet")
    with pytest.raises(DataError, match=f"has 2 columns named `{first}`: give them different names"):
        add("twice.parquet", "--replace")


@pytest.mark.parametrize("lines, words", [
    ("".join(json.dumps(row) + ",\n" for row in texts(9)), "first: line 1: the line is not JSON: Extra data"),
    ("".join(json.dumps(row) for row in texts(9)), "first: line 1: the line is not JSON: Extra data"),
    ('["a", "b"]\n["c", "d"]\n', "first: line 1: the row is no JSON object"),
    ("1\n2\n", "first: line 1: the row is no JSON object"),
])  # fmt: skip
def test_lines_that_are_no_objects_say_what_they_are(lines, words):
    Path("odd.jsonl").write_text(lines)
    with pytest.raises(DataError, match="not one row is a JSON object") as caught:
        add("odd.jsonl")
    assert words in str(caught.value)


def test_a_label_column_that_no_row_has_in_a_usable_form_says_so():
    with pytest.raises(DataError, match="not one row can be read as a text with its label; first: l.jsonl:1: the label "
                                        "is of type list"):  # fmt: skip
        add(jsonl("l.jsonl", [{**row, "label": [row["label"]]} for row in texts(40)]))


def test_what_a_row_held_that_has_the_wrong_type_stands_in_quarantine():
    rows = texts(40)
    rows[4]["text"] = {"en": sentence(4)}
    found = add(jsonl("mine.jsonl", rows))
    assert found.reasons() == {5: ["unreadable_row"]} and sentence(4) in found.quarantine[0]["text"]


def test_a_line_of_tabs_is_a_row_without_values():
    body = "".join(f"{row['text']}\t{row['label']}\n" for row in texts(40))
    Path("mine.tsv").write_text(f"text\tlabel\n{body}\t\n\n")
    found = add("mine.tsv")
    assert found.reasons() == {42: ["empty_text", "unknown_label"]} and len(found.kept) == 40


def test_names_for_messages():
    assert [shown_name(name) for name in ("a b", "", "a\x00\x1b[2J", "caf\udce9", "é")] == [
        "a b", "(no name)", "a\\x00\\x1b[2J", "caf\\xe9", "é"]  # fmt: skip
