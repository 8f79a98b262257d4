"""Delimited, packed and oddly shaped files: what `data add`, validation and `predict` read in them is the same."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from ajuste.cli.models import predict
from ajuste.core.errors import DataError
from ajuste.rows.read.delimited import is_quoted, records_of
from tests.made.added import add, asked, jsonl, project, sentence, texts
from tests.made.stand_in import stand_in


@pytest.fixture(autouse=True)
def _project(tmp_path, monkeypatch):
    project(tmp_path, monkeypatch)
    stand_in(monkeypatch)


def tsv(rows: list[dict]) -> str:
    return "text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in rows)


def predicted(name: str) -> list:
    return [(text, error is not None) for _, text, error in predict.read(Path(name), "text")]


def test_a_quote_in_a_plain_tsv_is_a_character():
    rows = texts(40)
    rows[20]["text"], rows[23]["text"] = '"My screen', 'the screen is 5"'
    rows[30]["text"] = '"quoted as a whole"'
    Path("plain.tsv").write_text(tsv(rows))
    found = add("plain.tsv")
    assert len(found.kept) == 40 and {row["text"] for row in found.kept} == {row["text"] for row in rows}
    assert predicted("plain.tsv") == [(row["text"], False) for row in rows]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_a_tsv_that_was_written_with_quotes_is_read_with_them(quoting):
    rows = texts(40)
    rows[3]["text"], rows[9]["text"] = 'she said "never" to it', "two\nlines\tand a tab"
    with open("quoted.tsv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"], delimiter="\t", quoting=quoting, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    assert is_quoted(Path("quoted.tsv"))
    assert predicted("quoted.tsv") == [(row["text"], False) for row in rows]


def test_a_carriage_return_costs_its_row_and_tells_nothing_of_quotes():
    rows = texts(40)
    rows[3]["text"], rows[9]["text"] = "two\nlines", "a\rb"
    with open("quoted.tsv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"], delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    assert is_quoted(Path("quoted.tsv"))
    assert predicted("quoted.tsv") == [(None, True) if i == 9 else (row["text"], False) for i, row in enumerate(rows)]


def test_a_quote_that_closes_in_a_later_row_is_an_error_of_its_line_alone():
    rows = [f"{i},{sentence(i)},{'neg' if i % 2 else 'pos'}" for i in range(40)]
    rows[20], rows[23] = '20,"My screen and so on,neg', '23,the screen is 5",pos'
    Path("swallow.csv").write_text("id,text,label\n" + "\n".join(rows) + "\n")
    found = add("swallow.csv")
    assert found.reasons() == {22: ["unreadable_row"]} and len(found.kept) == 39
    assert "swallow.csv:22: the record has a quote that closes 3 lines later" in found.said
    assert [i for i, (_, failed) in enumerate(predicted("swallow.csv")) if failed] == [20]


def test_texts_of_several_lines_are_no_rows():
    rows = texts(40)
    rows[5]["text"] = "Dear all,\nhow, are, you?\nBest, Bob\nx"
    rows[6]["text"] = "one\nBest, Bob"
    with open("letters.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["label", "text"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    assert [problem for _, _, problem in records_of(Path("letters.csv"), "csv")] == [None] * 41
    assert len(add("letters.csv").kept) == 40


def test_one_comma_too_many_and_an_open_quote_cost_their_row():
    Path("a.csv").write_text('id,text\n1,Hello, world is fine\n2,plain\n3,"open\n4,after\n5,and again\n')
    assert predicted("a.csv") == [(None, True), ("plain", False), (None, True), ("after", False), ("and again", False)]


PACK = {
    "gz": lambda name, raw: gzip.compress(raw),
    "bz2": lambda name, raw: bz2.compress(raw),
    "xz": lambda name, raw: lzma.compress(raw),
    "zst": lambda name, raw: pa.compress(raw, codec="zstd", asbytes=True),
    "zip": lambda name, raw: zipped({name: raw}),
}


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in files.items():
            archive.writestr(name, raw)
    return buffer.getvalue()


@pytest.mark.parametrize("how", PACK)
@pytest.mark.parametrize("form", ["csv", "tsv", "json", "jsonl"])
def test_a_packed_file_is_the_file_inside(how, form):
    rows = texts(24)
    whole = {
        "csv": "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows), "tsv": tsv(rows),
        "json": json.dumps(rows), "jsonl": "".join(json.dumps(row) + "\n" for row in rows)}[form]  # fmt: skip
    Path(f"mine.{form}.{how}").write_bytes(PACK[how](f"mine.{form}", whole.encode()))
    found = add(f"mine.{form}.{how}")
    assert len(found.kept) == 24 and found.set["files"][0]["format"] == form
    assert predicted(f"mine.{form}.{how}") == [(row["text"], False) for row in rows]


def test_two_files_of_one_packed_name_and_a_file_that_is_cut_off():
    raw = gzip.compress("".join(json.dumps(row) + "\n" for row in texts(2000)).encode())
    Path("mine.jsonl.gz").write_bytes(raw)
    add("mine.jsonl.gz")
    jsonl("mine.jsonl", [{"text": sentence(i + 3000), "label": "neg"} for i in range(40)])
    Path("mine.jsonl.gz").write_bytes(gzip.compress(Path("mine.jsonl").read_bytes()))
    assert [file["path"] for file in add("mine.jsonl.gz").set["files"]] == ["mine.jsonl.gz", "mine-2.jsonl.gz"]
    Path("cut.jsonl.gz").write_bytes(raw[:-2000])
    with pytest.raises(DataError, match="cut.jsonl.gz cannot be unpacked: .*is the file cut off"):
        add("cut.jsonl.gz", "--replace")
    Path("two.csv.zip").write_bytes(zipped({"a.csv": b"text,label\n", "b.csv": b"text,label\n"}))
    with pytest.raises(DataError, match=r"a zip of 2 files \(a.csv, b.csv\)"):
        add("two.csv.zip", "--replace")


@pytest.mark.parametrize("text", [json.dumps(texts(24)), json.dumps(texts(24), indent=1)])
def test_a_list_that_is_called_jsonl_is_a_list(text):
    Path("list.jsonl").write_text(text)
    assert len(add("list.jsonl").kept) == 24 and len(predicted("list.jsonl")) == 24


@pytest.mark.parametrize("name, text, message", [
    ("pretty.jsonl", "\n".join(json.dumps(row, indent=1) for row in texts(9)), "stands over several lines"),
    ("wrapped.json", json.dumps({"data": texts(9)}), "a list under `data`: save that list alone"),
    ("columns.json", json.dumps({"text": {"0": "a"}, "label": {"0": "b"}}), "holds columns, not rows"),
    ("mac.csv", "text,label\ra,neg\rb,pos\r", "line ends of CR alone"),
    ("bare.csv", f'"{"so many words " * 6}",neg\n"b",pos\n', "line 1 looks like a row"),
    ("tab.csv", "text\tlabel\na\tneg\nb\tpos\n", "joined by tabs: give it the ending .tsv"),
    ("semi.csv", "text;label\na;neg\nb;pos\n", "joined by `;`: save the file with commas$"),
])  # fmt: skip
def test_a_file_of_another_shape_is_one_line_that_names_the_cause(name, text, message):
    Path(name).write_bytes(text.encode())
    with pytest.raises(DataError, match=message) as caught:
        add(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_lines_called_json_and_a_named_delimiter_are_read():
    Path("lines.json").write_text(Path(jsonl("x.jsonl", texts(24))).read_text())
    assert len(add("lines.json").kept) == 24
    Path("sep.csv").write_text("sep=;\n" + tsv(texts(24)).replace("\t", ";"))
    assert len(add("sep.csv", "--replace").kept) == 24


def test_questions_and_answers_are_instructions():
    rows = [{"question": row["instruction"], "answer": row["output"]} for row in asked(30)]
    found = add(jsonl("qa.jsonl", rows))
    assert "layout question_answer, recognised" in found.said and len(found.kept) == 30
