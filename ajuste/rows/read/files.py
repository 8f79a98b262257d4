"""A data file as a whole, whatever its rows are: is it one, which columns has it, and its records one at a time.

CSV, TSV, JSON (a list of objects), JSON Lines and Parquet. Bytes that are no UTF-8 become lone surrogates
(surrogateescape), so that damage stays visible and nothing is lost; `printable` makes them storable. What is wrong with
the whole file (missing, empty, binary) is a DataError that names the file, what there is and what to do.

    CSV    a record that breaks off (a quote that never closes) costs its first line alone: reading resumes at the next
"""

import csv
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

from ajuste.core.errors import DataError
from ajuste.rows.read.json_files import Item, json_array, json_lines
from ajuste.rows.sets.base import Format

MAX_RECORD = 1 << 23  # characters; a longer one is broken, and what bounds the memory of an unclosed quote
DELIMITERS = {"csv": ",", "tsv": "\t"}
KEY_ROWS = 1000
CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
SURROGATE = re.compile("[\ud800-\udfff]")
T = TypeVar("T")


def columns_of(path: Path, form: Format) -> list[str]:
    """The columns of a file: its header, its schema, or the keys of its first thousand objects."""
    check_file(path, form)
    if form == "parquet":
        return _parquet_columns(path)
    if form in ("csv", "tsv"):
        lines = _Lines(path)
        with lines.file:
            return _header(path, csv.reader(lines, delimiter=DELIMITERS[form], strict=True))
    keys: dict[str, None] = {}
    for number, (_, value, _) in enumerate(items(path, form)):
        if isinstance(value, dict):
            keys.update(dict.fromkeys(value))
        if number == KEY_ROWS:
            break
    return list(keys)


def batched(path: Path, rows: Iterator[T], batch_rows: int) -> Iterator[list[T]]:
    """The rows of a file, at most `batch_rows` at a time. Raises DataError if there are none."""
    batch = list(islice(rows, batch_rows))
    if not batch:
        raise DataError(f"{path} has no rows: it holds a header or blanks alone")
    while batch:
        yield batch
        batch = list(islice(rows, batch_rows))


def printable(text: str) -> str:
    """The text as valid Unicode: a byte that was no UTF-8 is written as \\xNN, another lone surrogate as \\uNNNN."""
    return text if text.isascii() else SURROGATE.sub(_escape, text)


def _escape(match: re.Match) -> str:
    code = ord(match.group())
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


# --- the file as a whole ------------------------------------------------------------------------------------------


def check_file(path: Path, form: Format) -> None:
    if not path.is_file():
        raise DataError(f"{path} is missing: name a file that exists")
    with path.open("rb") as file:
        head = file.read(1 << 16)
    if not head.strip():
        raise DataError(f"{path} is empty: it must hold rows")
    if form == "parquet":
        return
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path} is UTF-16: save it as UTF-8")
    if head[:4] in (b"PK\x03\x04", b"PAR1", b"%PDF") or head[:2] == b"\x1f\x8b":
        raise DataError(f"{path} is a binary file, not {form.upper()}: unpack it, or export it as {form.upper()}")
    if len(CONTROL.findall(head)) > max(2, len(head) // 100):
        raise DataError(f"{path} is a binary file, not {form.upper()}: give a text file in UTF-8, or Parquet")


# --- CSV and TSV ----------------------------------------------------------------------------------------------------


class _Lines:
    """The lines of a file as text, for csv.reader; remembers line number and offset, and stops at MAX_RECORD."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("rb")
        self.number = 0  # lines handed out
        self.taken = 0  # characters of the current record
        self.second: tuple[int, int] | None = None  # offset and number after the first line of the current record

    def begin(self) -> None:
        self.taken, self.second = 0, None

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self.file.readline()
        if not line:
            raise StopIteration
        if self.number == 0:
            line = line.removeprefix(b"\xef\xbb\xbf")
        self.number += 1
        if self.second is None:
            self.second = (self.file.tell(), self.number)
        self.taken += len(line)
        if self.taken > MAX_RECORD:
            raise csv.Error(f"is longer than {MAX_RECORD} bytes: is a quote never closed?")
        return line.decode("utf-8", "surrogateescape")

    def after_first(self) -> None:
        """Go back to the line after the first one of the current record."""
        offset, self.number = self.second
        self.file.seek(offset)


def csv_records(path: Path, delimiter: str) -> Iterator[tuple[int, list[str], str | None]]:
    """(line, fields, problem): first the header, then each record that is not blank."""
    csv.field_size_limit(MAX_RECORD)
    lines = _Lines(path)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    with lines.file:
        header = _header(path, reader)
        yield lines.number, header, None
        while True:
            first = lines.number + 1
            lines.begin()
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                lines.after_first()
                reader = csv.reader(lines, delimiter=delimiter, strict=True)
                yield first, [], f"the record {_reason(error)}"
                continue
            if not fields:
                continue
            wrong = f"the record has {len(fields)} fields, the header {len(header)}"
            yield first, fields, wrong if len(fields) != len(header) else None


def _header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    try:
        return [name.strip() for name in next((fields for fields in reader if fields), [])]
    except csv.Error as error:
        raise DataError(f"{path} line 1: the header {_reason(error)}") from None


def _reason(error: csv.Error) -> str:
    text = str(error)
    if "unexpected end of data" in text:
        return "has a quote that is never closed"
    if "expected after" in text:
        return "has text after a closing quote"
    if "field larger" in text:
        return f"has a field of over {MAX_RECORD} characters"
    return text if text.startswith("is ") else f"cannot be read: {text}"


# --- JSON and JSON Lines ------------------------------------------------------------------------------------------


def items(path: Path, form: Format) -> Iterator[Item]:
    return json_lines(path) if form == "jsonl" else json_array(path)


# --- Parquet --------------------------------------------------------------------------------------------------------


def _parquet_columns(path: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            return file.schema_arrow.names
    except (pa.ArrowException, OSError, ValueError) as error:
        raise no_parquet(path, error) from None


def no_parquet(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is no readable Parquet file: {' '.join(str(error).split())[:200]}")
