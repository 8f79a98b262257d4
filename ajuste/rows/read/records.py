"""Whole rows of a data file, all columns, in batches: what instruction and control sets are read from.

The formats of ajuste/rows/read/files.py, and plain text, which has one column, `text`:

    txt, general text   a blank line ends a document; one of over 2,000 characters is cut into pieces, at the last line
                        end, else sentence end, else blank before that. Joined, the pieces are the document again
    txt, tagged         a line that begins with <instruction> begins a row; it ends where the next one begins

A row that cannot be read keeps its place and says why in `problem`; what is wrong with the whole file is a DataError.
Bytes that are no UTF-8 become lone surrogates. Memory: one batch.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ajuste.core.errors import DataError
from ajuste.rows.read.as_json import as_json
from ajuste.rows.read.delimited import DELIMITERS, MAX_RECORD, records_of
from ajuste.rows.read.files import (
    batched,
    check_file,
    columns_of,
    hint_of,
    items,
    no_parquet,
    shown_name,
)
from ajuste.rows.read.opened import open_bytes
from ajuste.rows.read.values import present

PIECE_CHARS = 2000
PIECE_LEAST = 200  # a line end before this is no place to cut: a heading would stand alone
SENTENCE_END = re.compile(r"[.!?][\"')\]]*\s")
TAG_BEGIN = "<instruction>"


@dataclass(slots=True)
class Record:
    """A row as it stands in the file: its columns, or the text of one that cannot be read and why."""

    line: int
    values: dict[str, object] | None = None
    text: str = ""
    problem: str | None = None


def record_columns(path: Path, form: str) -> list[str]:
    """The columns of a file; of plain text it is `text`. Raises DataError for what is wrong with it as a whole."""
    if form != "txt":
        return columns_of(path, form)
    check_file(path, form)
    return ["text"]


def check_needed(path: Path, found: list[str], needed: list[str], layout: str) -> None:
    """Raise DataError for the first of the needed columns that the file lacks or has twice, naming what there is."""
    for name in needed:
        if name not in found:
            shown = ", ".join(map(shown_name, found[:30])) + (", ..." if len(found) > 30 else "")
            raise DataError(
                f"{path} has no column `{name}`, which layout {layout} needs here: its columns are {shown or 'none'}; "
                "name the right one under `columns` in set.yaml, or with --map when the file is added" + hint_of(found)
            )
        if found.count(name) > 1:
            raise DataError(f"{path} has {found.count(name)} columns named `{name}`: give them different names")


def read_records(path: Path, form: str, batch_rows: int, tagged: bool = False) -> Iterator[list[Record]]:
    """Batches of at most `batch_rows` rows, in file order. `tagged` matters for plain text alone."""
    check_file(path, form)
    if form == "parquet":
        yield from _parquet(path, batch_rows)
        return
    if form == "txt":
        rows = (Record(line, {"text": text}) for line, text in (_tagged if tagged else _pieces)(path))
    elif form in DELIMITERS:
        rows = _delimited(path, form)
    else:
        rows = (_object(*item) for item in items(path, form))
    yield from batched(path, rows, batch_rows)


def _delimited(path: Path, form: str) -> Iterator[Record]:
    records = records_of(path, form)
    _, header, _ = next(records)
    for line, fields, problem in records:
        if problem:
            yield Record(line, text=DELIMITERS[form].join(fields), problem=problem)
        else:
            yield Record(line, dict(zip(header, fields, strict=True)))


def _object(line: int, value: object, problem: str | None) -> Record:
    if problem is None and not isinstance(value, dict):
        problem = "the row is no JSON object"
    if problem:
        return Record(line, text=value if isinstance(value, str) else as_json(value), problem=problem)
    return Record(line, present(value))


# --- plain text -----------------------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines; one of over MAX_RECORD bytes comes in parts of the same number."""
    with open_bytes(path) as file:
        number, whole, kept = 1, True, b""
        while part := file.readline(MAX_RECORD):
            if number == 1:
                part = part.removeprefix(b"\xef\xbb\xbf")
            part, kept = kept + part, b""
            whole = part.endswith(b"\n")
            if not whole and len(part) >= MAX_RECORD:  # a character must not be cut in two
                cut = len(part)
                while cut > len(part) - 4 and part[cut - 1] & 0xC0 == 0x80:
                    cut -= 1
                part, kept = part[: cut - 1], part[cut - 1 :]
            yield number, part.decode("utf-8", "surrogateescape")
            number += whole
        if kept:
            yield number, kept.decode("utf-8", "surrogateescape")


def _pieces(path: Path) -> Iterator[tuple[int, str]]:
    waiting, starts = "", []  # a document, and (offset in it, line number) of its lines

    def cut(end: int) -> tuple[int, str]:
        nonlocal waiting, starts
        piece, waiting = waiting[:end], waiting[end:]
        line = max((start for start in starts if start[0] <= 0), default=starts[0])[1]
        starts = [(offset - end, number) for offset, number in starts]
        starts = [start for start in starts if start[0] <= 0][-1:] + [start for start in starts if start[0] > 0]
        return line, piece

    for number, text in _lines(path):
        if not text.strip():
            if waiting.strip():
                yield cut(len(waiting))
            waiting, starts = "", []
            continue
        starts.append((len(waiting), number))
        waiting += text
        while len(waiting.rstrip()) > PIECE_CHARS:
            yield cut(_end(waiting))
    if waiting.strip():
        yield cut(len(waiting))


def _end(text: str) -> int:
    """Where to cut the first piece of a text that is longer than one."""
    line = text.rfind("\n", 0, PIECE_CHARS) + 1
    if line >= PIECE_LEAST:
        return line
    ends = [match.end() for match in SENTENCE_END.finditer(text, PIECE_LEAST, PIECE_CHARS)]
    return ends[-1] if ends else max(text.rfind(" ", PIECE_LEAST, PIECE_CHARS) + 1, 0) or PIECE_CHARS


def _tagged(path: Path) -> Iterator[tuple[int, str]]:
    first, parts, size = 1, [], 0
    for number, text in _lines(path):
        if text.lstrip().startswith(TAG_BEGIN) or size > MAX_RECORD:
            if "".join(parts).strip():
                yield first, "".join(parts)
            first, parts, size = number, [], 0
        if not parts:
            first = number
        if parts or text.strip():
            parts.append(text)
            size += len(text)
    if "".join(parts).strip():
        yield first, "".join(parts)


# --- Parquet --------------------------------------------------------------------------------------------------------


def _parquet(path: Path, batch_rows: int) -> Iterator[list[Record]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:  # no reading ahead: memory would grow with the file
            for batch in file.iter_batches(batch_rows, use_threads=False):
                # by place: of two columns of one name the last counts, as in CSV; one that is needed is refused before
                columns = {name: [_value(cell) for cell in column]
                           for name, column in zip(batch.schema.names, batch.columns, strict=True)}  # fmt: skip
                yield [_row(number + i + 1, {k: cells[i] for k, cells in columns.items()}) for i in range(len(batch))]
                number += len(batch)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise no_parquet(path, error) from None
    if not number:
        raise DataError(f"{path} has no rows")


def _value(cell) -> object:
    """A Python value. Parquet does not promise that its texts are UTF-8: what is not stays visible, or in a nested
    value is an error of its row."""
    try:
        value = cell.as_py()
    except UnicodeDecodeError as error:
        buffer = getattr(cell, "as_buffer", lambda: None)()
        return error if buffer is None else buffer.to_pybytes().decode("utf-8", "surrogateescape")
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def _row(line: int, values: dict[str, object]) -> Record:
    for name, value in values.items():
        if isinstance(value, UnicodeDecodeError):
            return Record(line, problem=f"column `{name}` holds bytes that are no UTF-8")
    return Record(line, present(values))
