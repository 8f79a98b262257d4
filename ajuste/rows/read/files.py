"""A data file as a whole, whatever its rows are: is it one, which columns has it, and its records one at a time.

CSV, TSV, JSON (a list of objects), JSON Lines and Parquet. Bytes that are no UTF-8 become lone surrogates
(surrogateescape), so that damage stays visible and nothing is lost; `printable` makes them storable. What is wrong with
the whole file (missing, empty, binary) is a DataError that names the file, what there is and what to do.
A packed file (gz, bz2, xz, zst, a zip of one file) is the file inside.
"""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

from ajuste.core.errors import DataError
from ajuste.rows.read.delimited import DELIMITERS, header_of
from ajuste.rows.read.json_files import Item, json_items
from ajuste.rows.read.opened import open_bytes, packing
from ajuste.rows.sets.base import Format

KEY_ROWS = 1000
CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
SURROGATE = re.compile("[\ud800-\udfff]")
T = TypeVar("T")


def columns_of(path: Path, form: Format) -> list[str]:
    """The columns of a file: its header, its schema, or the keys of its first thousand objects."""
    check_file(path, form)
    if form == "parquet":
        return _parquet_columns(path)
    if form in DELIMITERS:
        return header_of(path, form)
    keys: dict[str, None] = {}
    first = None
    for number, (line, value, problem) in enumerate(items(path, form)):
        if isinstance(value, dict):
            keys.update(dict.fromkeys(value))
        first = first or f"line {line}: {problem or 'the row is no JSON object with keys'}"
        if number == KEY_ROWS:
            break
    if first and not keys:
        raise DataError(f"{path}: not one row is a JSON object, such as {{\"text\": ...}}; first: {first}")
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


def shown_name(name: str) -> str:
    """The name of a column for messages: short, and without what would steer a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in printable(name)[:60]) or "(no name)"


def _escape(match: re.Match) -> str:
    code = ord(match.group())
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


# --- the file as a whole ------------------------------------------------------------------------------------------


def check_file(path: Path, form: Format) -> None:
    if not path.is_file():
        raise DataError(f"{path} is missing: name a file that exists")
    with open_bytes(path) as file:
        head = file.read(1 << 16)
    if not head.strip():
        raise DataError(f"{path} is empty: it must hold rows")
    if form == "parquet":
        if packing(path):
            raise DataError(f"{path} is packed, and Parquet is compressed itself: unpack it")
        return
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path} is UTF-16: save it as UTF-8")
    if head[:4] in (b"PK\x03\x04", b"PAR1", b"%PDF") or head[:2] == b"\x1f\x8b":
        raise DataError(f"{path} is a binary file, not {form.upper()}: unpack it, or export it as {form.upper()}")
    if len(CONTROL.findall(head)) > max(2, len(head) // 100):
        raise DataError(f"{path} is a binary file, not {form.upper()}: give a text file in UTF-8, or Parquet")
    if b"\r" in head and b"\n" not in head and form != "json":
        raise DataError(f"{path} has line ends of CR alone, as old Macs wrote them: save it with LF or CR LF")


def hint_of(found: list[str]) -> str:
    """What the columns of a file show about why one is not found; empty if nothing."""
    if len(found) == 1 and ";" in found[0]:
        return "; they look joined by `;`: save the file with commas"
    if len(found) == 1 and "\t" in found[0]:
        return "; they look joined by tabs: give it the ending .tsv"
    if any(len(name) > 60 or name.count(" ") > 4 for name in found):
        return "; line 1 looks like a row: put a line of column names, such as text,label, above it"
    return ""


# --- JSON and JSON Lines ------------------------------------------------------------------------------------------


def items(path: Path, form: Format) -> Iterator[Item]:
    return json_items(path, form == "jsonl")


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
