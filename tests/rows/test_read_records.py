"""Whole rows of every format, and plain text: pieces that join to the document, tagged rows with their lines."""

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ajuste.core.errors import DataError
from ajuste.rows.read import records
from ajuste.rows.read.records import PIECE_CHARS, check_needed, read_records, record_columns

CHAT = [{"role": "user", "content": "ñandú 😀\nwhat?"}, {"role": "assistant", "content": "a, \"b\""}]


def read(path, form, batch_rows=3, tagged=False):
    batches = list(read_records(path, form, batch_rows, tagged))
    assert all(0 < len(batch) <= batch_rows for batch in batches)
    return [record for batch in batches for record in batch]


@pytest.mark.parametrize("form", ["json", "jsonl", "parquet", "csv"])
def test_nested_rows_come_back_whole(tmp_path, form):
    rows = [{"messages": CHAT, "id": i} for i in range(5)]
    path = tmp_path / f"a.{form}"
    if form == "json":
        path.write_text(json.dumps(rows))
    elif form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        quoted = json.dumps(CHAT).replace('"', '""')
        path.write_text("messages,id\n" + "".join(f'"{quoted}",{i}\n' for i in range(5)))
    found = read(path, form)
    assert record_columns(path, form) == ["messages", "id"] and len(found) == 5
    for i, record in enumerate(found):
        chat = record.values["messages"]
        assert (json.loads(chat) if form == "csv" else chat) == CHAT and int(record.values["id"]) == i
    assert [record.line for record in found] == ([2, 3, 4, 5, 6] if form == "csv" else [1] * 5 if form == "json" else
                                                 [1, 2, 3, 4, 5])  # fmt: skip


def test_bad_rows_keep_their_place(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": "x"}\n{broken\n[1]\n{"a": "caf\xe9"}\n')
    found = read(path, "jsonl")
    assert [record.line for record in found] == [1, 2, 3, 4]
    assert [bool(record.problem) for record in found] == [False, True, True, False]
    assert found[1].text == "{broken\n" and found[3].values == {"a": "caf\udce9"}
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n1,2,3\n")
    assert "3 fields, the header 2" in read(path, "csv")[1].problem


def test_bytes_that_are_no_utf8_in_a_parquet_file(tmp_path):
    flat = pa.array([b"fine", b"caf\xe9"], pa.binary()).view(pa.string())
    deep = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), flat)
    pq.write_table(pa.table({"flat": flat, "deep": deep}), tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet", "parquet")
    assert found[0].values == {"flat": "fine", "deep": ["fine"]}
    assert "column `deep` holds bytes that are no UTF-8" in found[1].problem
    pq.write_table(pa.table({"flat": flat}), tmp_path / "b.parquet")
    assert read(tmp_path / "b.parquet", "parquet")[1].values == {"flat": "caf\udce9"}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5000), st.sampled_from(["\n", "\n\n", "\r\n", " ", ". "])), max_size=8),
       st.integers(0, 99))  # fmt: skip
def test_pieces_join_to_the_documents(tmp_path_factory, parts, seed):
    generator = random.Random(seed)
    text = "x" + "".join("".join(generator.choices("abcñ  .\n", k=size)) + end for size, end in parts)
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(text.encode())
    found = [record.values["text"] for record in read(path, "txt")]
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(0 < len(piece.rstrip()) <= PIECE_CHARS for piece in found)


def test_documents_end_at_blank_lines_and_pieces_name_their_line(tmp_path):
    path = tmp_path / "a.txt"
    long = " ".join(f"Sentence number {i} is here." for i in range(200))
    path.write_text(f"one\ntwo\n\n  \nthree\n\n{long}\nlast words\n", encoding="utf-8-sig")
    found = read(path, "txt")
    assert [(record.line, record.values["text"]) for record in found[:2]] == [(1, "one\ntwo\n"), (5, "three\n")]
    assert {record.line for record in found[2:]} == {7}
    assert all(record.values["text"].rstrip().endswith("here.") for record in found[2:-1])
    lines = "".join(f"{i} {'word ' * 30}\n" for i in range(100))
    path.write_text(lines)
    found = read(path, "txt")
    assert "".join(record.values["text"] for record in found) == lines
    assert all(int(record.values["text"].split()[0]) == record.line - 1 for record in found)  # cut at line ends


def test_a_line_longer_than_memory_allows_is_cut_between_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MAX_RECORD", 64)
    path = tmp_path / "a.txt"
    path.write_text("ñandú€😀" * 50 + "\nend\n")
    found = "".join(record.values["text"] for record in read(path, "txt"))
    assert found == "ñandú€😀" * 50 + "\nend\n"


def test_tagged_rows_of_plain_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("stray\n<instruction>a\n\nb</instruction>\n<response>c</response>\n\n"
                    "<instruction>never closed\n<instruction>d</instruction><response>e</response>\n")  # fmt: skip
    found = [(record.line, record.values["text"].strip()) for record in read(path, "txt", tagged=True)]
    assert found == [
        (1, "stray"),
        (2, "<instruction>a\n\nb</instruction>\n<response>c</response>"),
        (7, "<instruction>never closed"),
        (8, "<instruction>d</instruction><response>e</response>"),
    ]


@pytest.mark.parametrize(("content", "message"), [(b"", "is empty"), (b"\x00" * 99, "binary file"), (None, "missing")])
def test_a_file_that_is_wrong_as_a_whole(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.txt", "txt")


def test_needed_columns_are_named():
    with pytest.raises(DataError, match="no column `output`, which layout alpaca needs here: its columns are instr"):
        check_needed("a.csv", ["instruction", "reply"], ["instruction", "output"], "alpaca")
    with pytest.raises(DataError, match="2 columns named `output`"):
        check_needed("a.csv", ["output", "output"], ["output"], "alpaca")
