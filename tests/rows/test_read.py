"""The reader: every format gives the same rows with the lines they begin on; a bad row never ends the reading."""

import csv
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ajuste.core.errors import DataError
from ajuste.rows.read.files import columns_of, printable
from ajuste.rows.read.texts import RawRow, read_rows
from ajuste.rows.sets.classification import Columns

COLUMNS = Columns(text="review", label="sentiment", source="site")
ROWS = [
    {"review": "plain", "sentiment": "good", "site": "a"},
    {"review": 'two\nlines, "quoted"', "sentiment": "bad", "site": "b"},
    {"review": "", "sentiment": "good", "site": "a"},
    {"review": "ñandú 😀", "sentiment": "so so", "site": "c"},
]


def write(path: Path, form: str, rows: list[dict] = ROWS) -> Path:
    if form in ("csv", "tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if form == "csv" else "\t", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    elif form == "json":
        path.write_text(json.dumps(rows, indent=1))
    elif form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def read(path: Path, form: str, columns: Columns = COLUMNS, batch_rows: int = 2) -> list[RawRow]:
    batches = list(read_rows(path, form, columns, batch_rows))
    assert all(0 < len(batch) <= batch_rows for batch in batches)
    return [row for batch in batches for row in batch]


@pytest.mark.parametrize(
    ("form", "lines"),
    [
        ("csv", [2, 3, 5, 6]),
        ("tsv", [2, 3, 5, 6]),
        ("json", [2, 7, 12, 17]),
        ("jsonl", [1, 2, 3, 4]),
        ("parquet", [1, 2, 3, 4]),
    ],
)
def test_every_format_gives_the_same_rows_with_their_lines(tmp_path, form, lines):
    path = write(tmp_path / f"a.{form}", form)
    assert columns_of(path, form) == list(ROWS[0])
    rows = read(path, form)
    assert [(row.text, row.label, row.source) for row in rows] == [tuple(row.values()) for row in ROWS]
    assert [row.line for row in rows] == lines
    assert not any(row.problem for row in rows)


def test_bytes_that_are_no_utf8_stay_visible(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfreview,sentiment\r\ncaf\xe9,good\r\nnul\x00,bad\r\n\r\nlast,good")
    rows = read(path, "csv", Columns(text="review", label="sentiment"))
    assert [row.text for row in rows] == ["caf\udce9", "nul\0", "last"]
    assert [row.line for row in rows] == [2, 3, 5]
    assert printable(rows[0].text) == "caf\\xe9"
    assert printable("\ud800") == "\\ud800" and printable("ñ") == "ñ"


def test_broken_csv_records_cost_their_own_line_alone(tmp_path):
    lines = ["review,sentiment", "one,good", 'open "quote,bad', '"never closed,bad', "two,good", "a,b,c", "lonely",
             '"x"y,bad', '"three",good', '"open at the end,good', "four,bad"]  # fmt: skip
    path = tmp_path / "a.csv"
    path.write_text("\n".join(lines))
    rows = read(path, "csv", Columns(text="review", label="sentiment"))
    assert [(row.line, row.text) for row in rows if not row.problem] == [
        (2, "one"), (3, 'open "quote'), (5, "two"), (9, "three"), (11, "four")]  # fmt: skip
    assert [row.line for row in rows if row.problem] == [4, 6, 7, 8, 10]


def test_an_unclosed_quote_before_a_very_long_file_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("ajuste.rows.read.delimited.MAX_RECORD", 5000)
    path = tmp_path / "a.csv"
    path.write_text('review,sentiment\n"open,bad\n' + "fine,good\n" * 2000 + "y" * 6000 + ",bad\nlast,good\n")
    rows = read(path, "csv", Columns(text="review", label="sentiment"))
    assert [row.line for row in rows if row.problem] == [2, 2003]
    assert len(rows) == 2003 and rows[-1].text == "last"


def test_bad_json_rows_keep_their_line(tmp_path):
    good = json.dumps({"review": "x", "sentiment": 1})
    path = tmp_path / "a.jsonl"
    path.write_bytes(f"{good}\n{{oops\n\n[1]\n".encode() + b'{"review": "caf\xe9", "sentiment": true}\n'
                     b'{"review": 5, "sentiment": "a"}\n{"sentiment": "a"}\n' + b"[" * 100_000 + b"\n")  # fmt: skip
    rows = read(path, "jsonl", Columns(text="review", label="sentiment"))
    assert [row.line for row in rows] == [1, 2, 4, 5, 6, 7, 8]
    assert [bool(row.problem) for row in rows] == [False, True, True, False, True, False, True]
    assert (rows[0].label, rows[3].label, rows[3].text) == ("1", "true", "caf\udce9")
    path = tmp_path / "a.json"
    path.write_text(f"[{good},\n 12,\n\n{good}]")
    rows = read(path, "json", Columns(text="review", label="sentiment"))
    assert [(row.line, bool(row.problem)) for row in rows] == [(1, False), (2, True), (4, False)]


def test_json_items_longer_than_a_chunk(tmp_path):
    texts = [character * size for character, size in (("a", 10), ("b", 3_000_000), ("c", 1_048_576), ("d", 5))]
    path = write(tmp_path / "a.json", "json", [{"text": text, "label": "x"} for text in texts])
    assert [row.text for row in read(path, "json", Columns(text="text", label="label"))] == texts


WRONG = {
    "empty.csv": (b"", "is empty"),
    "blank.jsonl": (b" \n\n", "is empty"),
    "header.csv": (b"review,sentiment,site\n", "has no rows"),
    "other.csv": (b"text;label\nx;y\n", "no column `review`: its columns are text;label.*joined by `;`"),
    "twice.csv": (b"review,review,sentiment,site\na,b,c,d\n", "2 columns named `review`"),
    "other.jsonl": (b'{"text": 1}\n', "no column `review`: its columns are text"),
    "binary.csv": (bytes(range(256)) * 40, "is a binary file"),
    "zip.csv": (b"PK\x03\x04 and so on", "cannot be unpacked"),
    "utf16.csv": ("review,sentiment".encode("utf-16"), "UTF-16"),
    "binary.parquet": (b"nothing", "no readable Parquet"),
    "cut.json": (b'[{"review": "a", "sentiment": "b", "site": "c"},', "line 1: the list ends"),
    "bad.json": (b'[{"review": "a", "sentiment": "b", "site": "c"},\n{"review" 5}]', "line 2 is not JSON"),
    "object.json": (b'{"review": "a"}', "no JSON list"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path, name):
    content, message = WRONG[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(path, path.suffix[1:])
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere.csv is missing"):
        read(tmp_path / "nowhere.csv", "csv")


def test_parquet_with_dictionary_numbers_and_bad_bytes(tmp_path):
    table = pa.table({
        "review": pa.array([b"caf\xe9", b"ok", None]).cast(pa.binary()).view(pa.binary()),
        "sentiment": pa.array([1, 0, 1]),
        "site": pa.array(["a", "b", "a"]).dictionary_encode(),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet", "parquet")
    assert [(row.text, row.label, row.source) for row in rows] == [
        ("caf\udce9", "1", "a"),
        ("ok", "0", "b"),
        ("", "1", "a"),
    ]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=400),
    st.sampled_from(["csv", "tsv", "json", "jsonl", "parquet"]),
    st.sampled_from([b"", b"head"]),
)
def test_random_bytes_never_crash_the_reader(tmp_path, content, form, head):
    heads = {"csv": b"review,sentiment,site\n", "tsv": b"review\tsentiment\tsite\n", "json": b"[", "parquet": b"PAR1",
             "jsonl": b'{"review": "a", "sentiment": "b", "site": "c"}\n'}  # fmt: skip
    path = tmp_path / "fuzz"
    path.write_bytes((heads[form] if head else b"") + content)
    try:
        for row in read(path, form):
            printable(row.text).encode("utf-8")
    except DataError as error:
        assert "\n" not in str(error)


def test_damaged_parquet_never_crashes_the_reader(tmp_path):
    path = write(tmp_path / "a.parquet", "parquet", ROWS * 50)
    whole = path.read_bytes()
    generator = random.Random(0)
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(generator.randint(1, 20)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        path.write_bytes(content)
        try:
            read(path, "parquet", batch_rows=64)
        except DataError as error:
            assert "\n" not in str(error)
