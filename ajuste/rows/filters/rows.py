"""The rows of a set without those that a filter finds something in; what left, and why.

    scanned(folder, ...)              counts by kind; nothing is written
    filtered(folder, ..., new, why)   the rows that are clean, as a set of their own; kept + removed = rows
        <new>/set.yaml, <file>.jsonl          the set's own columns and layout; as JSON Lines, whatever the file was
        <why>/quarantine.parquet              row_id, location, reasons (kinds), detail, text: as a validation writes it
        <why>/filter.json                     counts alone, no text

Kinds are those of ajuste/rows/filters/filters.py, and

    evaluation    `ngram` words in a row that also stand in a set that judges the model (ajuste/rows/decontaminate.py)
    unreadable    a row that cannot be read, of which nobody can say what it holds

Only the columns that the set's layout uses are looked at, since the others reach no model; each text by itself. Same
set, same bytes. Memory: a batch of rows, and the n-grams of the sets that judge.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from ajuste.core.errors import DataError, UsageError
from ajuste.core.figures import write_json
from ajuste.rows.checks.validation import QUARANTINE
from ajuste.rows.filters.filters import Filter
from ajuste.rows.layouts import instructions as instruction_layouts
from ajuste.rows.layouts import preferences as preference_layouts
from ajuste.rows.ngrams import Ngrams
from ajuste.rows.parquet import ParquetRows
from ajuste.rows.read.as_json import as_json
from ajuste.rows.read.files import printable
from ajuste.rows.read.records import Record, read_records
from ajuste.rows.sets import classification, instructions, preferences
from ajuste.rows.sets.base import Set, dump_set, kind_of, read_values
from ajuste.rows.split import row_id

BATCH_ROWS = 4096
READ = {
    "classification": classification.read_set,
    "instructions": instructions.read_set,
    "preferences": preferences.read_set,
}


@dataclass
class Counted:
    """What was found: rows, and by kind the rows that have it and how often it stands in them."""

    read: int = 0
    kept: int = 0
    rows: Counter = field(default_factory=Counter)
    findings: Counter = field(default_factory=Counter)

    def report(self) -> dict:
        """As JSON: same set and filter, same report."""
        kinds = {kind: {"rows": self.rows[kind], "findings": self.findings[kind]} for kind in sorted(self.rows)}
        return {"rows": {"read": self.read, "kept": self.kept, "removed": self.read - self.kept}, "kinds": kinds}


@dataclass(frozen=True)
class Judged:
    """A row, and what was found in it: nothing, or kinds with their numbers and where a copy stands."""

    record: Record
    kinds: Counter
    copy_of: str | None = None


def scanned(folder: Path, filter: Filter, against: Sequence[Ngrams] = ()) -> dict:
    """The counts of a set: rows, and by kind rows and findings. Raises DataError or UsageError."""
    counted = Counted()
    for file in read_set(folder).files:
        for one in _judged(folder, file, filter, against):
            _count(counted, one)
    return counted.report()


def filtered(folder: Path, filter: Filter, against: Sequence[Ngrams], new: Path, why: Path) -> dict:
    """Write the two folders named above, which must not exist, and return filter.json's content. Raises DataError if no
    row is left, or as `scanned` does."""
    data_set, counted = read_set(folder), Counted()
    names = [f"{Path(file.path).stem}.jsonl" for file in data_set.files]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"data/{folder.name} has two files that would be {twice[0]}: give them different names first")
    new.mkdir(parents=True)
    why.mkdir(parents=True)
    with ExitStack() as stack:
        quarantine = stack.enter_context(ParquetRows(why / "quarantine.parquet", QUARANTINE))
        for file, name in zip(data_set.files, names, strict=True):
            kept = stack.enter_context((new / name).open("w", encoding="ascii"))
            for one in _judged(folder, file, filter, against):
                _count(counted, one)
                if one.kinds:
                    quarantine.write(_quarantined(folder.name, file.path, one))
                else:
                    _keep(kept, one.record)
    if not counted.kept:
        raise DataError(f"data/{folder.name}: not one of {counted.read:,} rows is left; leave out a kind")
    files = [_as_lines(file.model_dump(mode="json"), name) for file, name in zip(data_set.files, names, strict=True)]
    (new / "set.yaml").write_text(dump_set(type(data_set)(**{**data_set.model_dump(), "files": files})), "utf-8")
    report = counted.report()
    write_json(why / "filter.json", report)
    return report


def read_set(folder: Path) -> Set:
    """The set of a folder, of a kind whose rows are filtered. Raises UsageError for another one, DataError."""
    kind = kind_of(read_values(folder))
    if kind not in READ:
        raise UsageError(f"data/{folder.name} is a set of kind {kind}: kinds {', '.join(READ)} are filtered")
    found = READ[kind](folder)
    tied = [file.path for file in found.files if getattr(file, "header", None) or getattr(file, "raters", None)]
    if tied:
        raise UsageError(f"data/{folder.name}/{tied[0]}: ratings that stand in two files are not filtered")
    return found


def used_columns(file: object) -> set[str]:
    """The columns of a file whose texts a model learns from."""
    if isinstance(file, classification.SourceFile):
        return {file.columns.text}
    if isinstance(file, instructions.InstructionFile):
        known = instruction_layouts.columns_known(file.layout, file.phrasings())
    else:
        known = preference_layouts.columns_known(file.layout)
    return {file.columns.get(key, key) for key in known if key not in instruction_layouts.ANY}


def texts_in(value: object) -> Iterator[str]:
    """All texts inside a value of a row."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts_in(part)


def _judged(folder: Path, file: object, filter: Filter, against: Sequence[Ngrams]) -> Iterator[Judged]:
    columns = used_columns(file)
    tagged = getattr(file, "layout", "") == "tagged"
    for batch in read_records(folder / file.path, file.format, BATCH_ROWS, tagged):
        for record in batch:
            if record.values is None:
                yield Judged(record, Counter(unreadable=1))
                continue
            texts = [text for name, value in record.values.items() if name in columns for text in texts_in(value)]
            kinds = Counter(one.kind for text in texts for one in filter.find(text))
            places = (ngrams.find(texts) for ngrams in against if texts)
            copy_of = next((place for place in places if place), None)
            yield Judged(record, kinds + Counter(evaluation=1) if copy_of else kinds, copy_of)


def _count(counted: Counted, one: Judged) -> None:
    counted.read += 1
    counted.kept += not one.kinds
    counted.rows.update(one.kinds.keys())
    counted.findings.update(one.kinds)


def _keep(file: TextIO, record: Record) -> None:
    """The row as a line. Lone surrogates, which a byte that was no UTF-8 became, are escapes of JSON."""
    file.write(json.dumps(json.loads(as_json(record.values))) + "\n")


def _quarantined(set_name: str, path: str, one: Judged) -> dict:
    raw = one.record.text if one.record.values is None else as_json(one.record.values)
    kinds = sorted(one.kinds)
    detail = [f"{kind} {one.kinds[kind]}" for kind in kinds if kind not in ("unreadable", "evaluation")]
    detail += [f"shares words with {one.copy_of}"] if one.copy_of else []
    detail += [one.record.problem] if one.record.problem else []
    return {
        "row_id": [row_id(set_name, raw, "", path)], "location": [f"data/{set_name}/{path}:{one.record.line}"],
        "reasons": [kinds], "detail": [printable("; ".join(detail))], "text": [printable(raw)],
    }  # fmt: skip


def _as_lines(file: dict, name: str) -> dict:
    """The entry of set.yaml for a file that was written as JSON Lines; its rows keep their source."""
    return {**{key: value for key, value in file.items() if value is not None}, "path": name, "format": "jsonl"}
