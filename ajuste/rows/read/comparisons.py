"""Comparisons of a file, in batches, with the line where each begins.

The formats of ajuste/rows/read/records.py, and a `.tsv` whose set.yaml names its `header`: a file without one, whose
lines are cut at tabs alone, so that a quotation mark is a character like others. Texts and ratings that stand in two
files meet by `id`; the file of the ratings is held in memory, some 200 bytes a text, the other one in batches.
"""

from collections.abc import Iterator
from pathlib import Path

from ajuste.core.errors import DataError
from ajuste.rows.layouts.preferences import Comparison, to_comparison
from ajuste.rows.read.files import check_file
from ajuste.rows.read.opened import open_bytes
from ajuste.rows.read.records import Record, check_needed, read_records, record_columns
from ajuste.rows.read.values import named
from ajuste.rows.sets.preferences import PreferenceFile, PreferenceSet


def read_comparisons(folder: Path, data_set: PreferenceSet, file: PreferenceFile, batch_rows: int) \
        -> Iterator[list[Comparison]]:  # fmt: skip
    """Batches of the rows of a file. Raises DataError for what is wrong with the file as a whole."""
    given = _raters(folder, data_set, file, batch_rows)
    for batch in records(folder / file.path, file, batch_rows):
        for record in batch:
            if given is not None and record.values is not None:
                key = _id_of(record.values, file)
                record.values[file.columns.get("ratings", "ratings")] = given.get(key)
        yield [to_comparison(record, file.layout, file.columns, data_set.prompt) for record in batch]


def columns_in(path: Path, file: PreferenceFile) -> list[str]:
    """The columns of a file as it is read."""
    if file.header:
        check_file(path, file.format)
        return list(file.header)
    return record_columns(path, file.format)


def records(path: Path, file: PreferenceFile, batch_rows: int) -> Iterator[list[Record]]:
    """Whole rows of a file, all columns."""
    check_needed(path, columns_in(path, file), file.needed(), file.layout)
    if not file.header:
        yield from read_records(path, file.format, batch_rows)
        return
    batch = []
    with open_bytes(path) as lines:
        for number, line in enumerate(lines, 1):
            text = line.decode("utf-8", "surrogateescape").rstrip("\r\n")
            if not text.strip(" "):  # a line of tabs is a row of which every value is missing
                continue
            fields = text.split("\t")
            if len(fields) != len(file.header):
                wrong = f"the line has {len(fields)} fields, the header {len(file.header)}"
                batch.append(Record(number, text=text, problem=wrong))
            else:
                batch.append(Record(number, dict(zip(file.header, fields, strict=True))))
            if len(batch) == batch_rows:
                yield batch
                batch = []
    if batch:
        yield batch


def _id_of(values: dict[str, object], file: PreferenceFile) -> str:
    value = values.get(file.columns.get("id", "id"))
    return named(value) or str(value).strip()


def _raters(folder: Path, data_set: PreferenceSet, file: PreferenceFile, batch_rows: int) -> dict[str, object] | None:
    """What the raters gave, by id; None if it stands in the file itself. Raises DataError for an id
    that comes twice."""
    if not file.raters:
        return None
    other = next(part for part in data_set.files if part.path == file.raters)
    found: dict[str, object] = {}
    for batch in records(folder / other.path, other, batch_rows):
        for record in batch:
            values = record.values or {}
            key = _id_of(values, other)
            if key in found and record.problem is None:
                place = f"{folder / other.path}:{record.line}"
                raise DataError(f"{place}: id `{key[:60]}` comes twice: whose ratings are they?")
            found[key] = values.get(other.columns.get("ratings", "ratings"))
    return found
