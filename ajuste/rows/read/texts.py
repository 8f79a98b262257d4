"""Texts and labels of a file, in batches, with the line where each begins. A bad row never ends the reading.

The formats of ajuste/rows/read/files.py. A row that cannot be read keeps its place and says why in `problem`; a column
that the file lacks is a DataError that names those that it has.

    line   1-based line where the record begins; of Parquet the row number. Memory: one batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ajuste.core.errors import DataError
from ajuste.rows.read.as_json import as_json
from ajuste.rows.read.delimited import DELIMITERS, records_of
from ajuste.rows.read.files import batched, columns_of, hint_of, items, no_parquet, shown_name
from ajuste.rows.read.json_files import Item
from ajuste.rows.read.values import missing, named
from ajuste.rows.sets.base import Format
from ajuste.rows.sets.classification import Columns


@dataclass(slots=True)
class RawRow:
    """A row as it stands in the file. `problem` says why it could not be read, else it is None."""

    line: int
    text: str = ""
    label: str = ""
    source: str | None = None
    file: str | None = None
    problem: str | None = None


def check_columns(path: Path, found: list[str], columns: Columns) -> None:
    """Raise DataError that names the first mapped column that the file lacks, and the columns that it has."""
    shown = ", ".join(map(shown_name, found[:30])) + (", ..." if len(found) > 30 else "")
    for name in columns.names():
        if name not in found:
            raise DataError(
                f"{path} has no column `{name}`: its columns are {shown or 'none'}; name the right ones with "
                "--map text=COLUMN --map label=COLUMN"
                + hint_of(found)
            )
        if found.count(name) > 1:
            raise DataError(f"{path} has {found.count(name)} columns named `{name}`: give them different names")


def read_rows(path: Path, form: Format, columns: Columns, batch_rows: int) -> Iterator[list[RawRow]]:
    """Batches of at most `batch_rows` rows, in file order. Raises DataError for what is wrong with the file."""
    check_columns(path, columns_of(path, form), columns)
    if form == "parquet":
        yield from _parquet(path, columns, batch_rows)
        return
    if form in DELIMITERS:
        rows = _delimited(path, form, columns)
    else:
        rows = (_object(item, columns) for item in items(path, form))
    yield from batched(path, rows, batch_rows)


def _delimited(path: Path, form: Format, columns: Columns) -> Iterator[RawRow]:
    records = records_of(path, form)
    _, header, _ = next(records)
    at = {key: header.index(name) for key, name in columns.model_dump(exclude_none=True).items()}
    for line, fields, problem in records:
        if problem:
            yield RawRow(line, text=DELIMITERS[form].join(fields), problem=problem)
        else:
            yield RawRow(line, **{key: fields[i] for key, i in at.items()})


def _object(item: Item, columns: Columns) -> RawRow:
    line, value, problem = item
    if problem is None and not isinstance(value, dict):
        problem = "the row is no JSON object"
    if problem:
        return RawRow(line, text=value if isinstance(value, str) else as_json(value), problem=problem)
    return _from_values(line, {key: value.get(name) for key, name in columns.model_dump(exclude_none=True).items()})


def _from_values(line: int, values: dict[str, object]) -> RawRow:
    """Typed values as a row: the text must be text; numbers and truth values may be labels."""
    row = RawRow(line)
    for key, value in values.items():
        if isinstance(value, bytes):
            value = value.decode("utf-8", "surrogateescape")
        if missing(value):
            continue
        if isinstance(value, str):
            setattr(row, key, value)
        elif key != "text" and named(value) is not None:
            setattr(row, key, named(value))
        else:
            row.problem = f"the {key} is of type {type(value).__name__}"
    if row.problem:
        row.text = as_json(values)
    return row


def _parquet(path: Path, columns: Columns, batch_rows: int) -> Iterator[list[RawRow]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    keys = columns.model_dump(exclude_none=True).items()
    number = 0
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:  # no reading ahead: memory would grow with the file
            for batch in file.iter_batches(batch_rows, columns=columns.names(), use_threads=False):
                fields = {name: _values(batch[name]) for name in columns.names()}
                yield [
                    _from_values(number + i + 1, {key: fields[name][i] for key, name in keys})
                    for i in range(batch.num_rows)
                ]
                number += batch.num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        raise no_parquet(path, error) from None
    if not number:
        raise DataError(f"{path} has no rows")


def _values(column) -> list:
    """Python values; texts as bytes, because Parquet does not promise that they are UTF-8."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.binary() if pa.types.is_string(column.type) else pa.large_binary())
    return column.to_pylist()
