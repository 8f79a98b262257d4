"""How `ajuste data add` makes or extends a set of data/: look at the file, choose classes, publish, or change nothing.

A new file is prepared beside data/ and moved in only when everything is known to be right; if recording it in data.dvc
fails, or the command is interrupted, data/ is put back as it was.
"""

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ajuste.cli.data.kinds import DataSet, read_any
from ajuste.core.errors import DataError, UsageError
from ajuste.rows.read.files import printable
from ajuste.rows.read.texts import read_rows
from ajuste.rows.sets.base import check_set, dump_set
from ajuste.rows.sets.classification import ClassificationSet, Columns, SourceFile

DATA = Path("data")
FORMATS = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl",
           ".parquet": "parquet", ".pq": "parquet", ".txt": "txt"}  # fmt: skip
PARTS = {"train", "test", "dev", "val", "valid", "validation"}  # folders between a set and its labels, as in aclImdb
UNLABELLED = {"unsup"}  # aclImdb's reviews without a label
MIN_CLASS_SHARE, MIN_CLASS_ROWS = 0.1, 2  # a rarer value is taken for a slip, not for a class, unless it is named
MAX_CLASSES = 1000
MAX_VALUES = 100_000  # distinct labels that are counted: a column of texts is no column of labels
BATCH_ROWS = 4096
SHOWN_ROWS = 3


@dataclass
class Seen:
    """What a file holds."""

    rows: int = 0
    unreadable: int = 0
    first_problem: str = ""
    values: Counter = field(default_factory=Counter)  # label, category or number of responses -> rows
    first: list = field(default_factory=list)  # rows, to be shown

    def readable(self, path: Path, batch: list, problems: list[str | None]) -> list:
        """Count the rows of a batch, of which some could not be read; gives the others."""
        good = [row for row, problem in zip(batch, problems, strict=True) if not problem]
        self.rows += len(batch)
        self.unreadable += len(batch) - len(good)
        for row, problem in zip(batch, problems, strict=True):
            if problem and not self.first_problem:
                self.first_problem = f"{path.name}:{row.line}: {problem}"
        self.first += good[: SHOWN_ROWS - len(self.first)]
        return good

    def check_any(self, path: Path, layout: str) -> None:
        """Raise DataError if not one row could be read."""
        if self.unreadable == self.rows:
            raise DataError(f"{path.name}: not one row can be read as {layout}; first: {self.first_problem}")


def look(path: Path, file: SourceFile) -> Seen:
    """Read the whole file once. Raises DataError for what is wrong with it as a whole."""
    seen = Seen()
    for batch in read_rows(path, file.format, file.columns, BATCH_ROWS):
        good = seen.readable(path, batch, [row.problem for row in batch])
        seen.values.update(printable(row.label.strip()) for row in good)
        if len(seen.values) > MAX_VALUES:
            raise DataError(f"{path.name}: column `{file.columns.label}` has over {MAX_VALUES} different values: "
                            "is it the label column?")  # fmt: skip
    return seen


def choose_labels(where: str, seen: Seen, given: str, existing: list[str]) -> tuple[list[str], dict[str, str] | None]:
    """Class names in id order, the existing ones first, and the map from values of the file if one was given.

    given: "a,b,c" or "0=a,1=b"; empty: the values with 2 rows and a tenth of the most frequent one's.
    """
    if given:
        pairs = [part.strip().partition("=") for part in given.split(",") if part.strip()]
        names = [(name if is_map else value).strip() for value, is_map, name in pairs]
        mapped = {value.strip(): name.strip() for value, is_map, name in pairs if is_map} or None
        labels = existing + [name for name in dict.fromkeys(names) if name not in existing]
    else:
        known = set(existing)
        least = max(MIN_CLASS_ROWS, MIN_CLASS_SHARE * max(seen.values.values(), default=0))
        found = [value for value, rows in seen.values.items() if value and rows >= least]
        if existing and not known & seen.values.keys():
            raise UsageError(
                f"{where}: none of its labels ({_shown(found or list(seen.values))}) is a class of the set "
                f"({_shown(existing)}): give --labels {found[0] if found else 'VALUE'}={existing[0]},..., "
                "or --replace, or another set name"
            )
        labels, mapped = existing + sorted((value for value in found if value not in known), key=_natural), None
    if not 2 <= len(labels) <= MAX_CLASSES:
        raise DataError(
            f"{where}: {len(labels)} classes; a value counts as one with {MIN_CLASS_ROWS} rows and a tenth of those of "
            f"the most frequent one; the values are {_shown([value for value, _ in seen.values.most_common()])}: "
            "is it the label column? Name the classes with --labels a,b,c"
        )
    return labels, mapped


def _natural(value: str) -> tuple:
    return (0, int(value), "") if re.fullmatch(r"-?\d{1,18}", value) else (1, 0, value)


def _shown(values: list[str]) -> str:
    return ", ".join(value[:40] or "(empty)" for value in values[:10]) + (", ..." if len(values) > 10 else "") or "none"


def mapping_from(parts: list[str]) -> dict[str, str]:
    """["text=review", "label=sentiment"] as a dictionary, whatever the keys."""
    pairs = [part.partition("=") for part in parts]
    for part, (key, _, column) in zip(parts, pairs, strict=True):
        if not key or not column:
            raise UsageError(f"--map {part}: write text=COLUMN and label=COLUMN, or of instructions instruction=COLUMN")
    return {key: column for key, _, column in pairs}


def columns_from(mapping: dict[str, str]) -> Columns:
    """The mapping as Columns; text and label are their own names if left out."""
    for key, column in mapping.items():
        if key not in ("text", "label", "source"):
            raise UsageError(f"--map {key}={column}: write text=COLUMN, label=COLUMN or source=COLUMN")
    return Columns(**{"text": "text", "label": "label", **mapping})


def format_of(path: Path) -> str:
    """The format by the file's ending. Raises UsageError that lists the known ones."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(
            f"{path}: `{path.suffix}` is no known ending: {' '.join(FORMATS)}, or a folder of texts by label"
        )
    return FORMATS[path.suffix.lower()]


def pack(folder: Path, out: Path) -> None:
    """A folder of .txt files by label, <label>/*.txt or <train|test>/<label>/*.txt, as one Parquet file."""
    import pyarrow as pa

    from ajuste.rows.parquet import ParquetRows

    def folders(parent: Path) -> list[Path]:
        return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))

    parts = [path for path in folders(folder) if path.name in PARTS]
    labels = [path for part in parts or [folder] for path in folders(part) if path.name not in UNLABELLED]
    files = [(label.name, path) for label in labels for path in sorted(label.glob("*.txt"))]
    if not files:
        raise DataError(f"{folder} holds no texts by label: make folders like pos/ and neg/ with one .txt file a text")
    with ParquetRows(out, pa.schema([("file", pa.string()), ("label", pa.string()), ("text", pa.binary())])) as sink:
        for begin in range(0, len(files), 1000):
            part = files[begin : begin + 1000]
            sink.write({
                "file": [printable(path.relative_to(folder).as_posix()) for _, path in part],
                "label": [printable(label) for label, _ in part],
                "text": [path.read_bytes() for _, path in part],
            })  # fmt: skip


def free_name(path: Path, folder: Path, taken: list[str]) -> str:
    """The file's name, or name-2 and so on if the set has another file of that name.

    Raises UsageError if the set holds this very file already.
    """
    stem, suffix = path.stem, path.suffix
    for number in range(1, len(taken) + 2):
        name = f"{stem}-{number}{suffix}" if number > 1 else path.name
        if name not in taken:
            return name
        if same_bytes(path, folder / name):
            raise UsageError(f"{folder} holds this very file already, as {name}: there is nothing to add")
    raise AssertionError("one of n + 1 names is free")


def same_bytes(one: Path, other: Path) -> bool:
    import filecmp

    return other.is_file() and filecmp.cmp(one, other, shallow=False)


def extend(old: ClassificationSet | None, file: SourceFile, labels: list[str], licence: str) -> ClassificationSet:
    """The set with one more file."""
    files = [part.model_dump(exclude_none=True) for part in [*(old.files if old else []), file]]
    values = {"kind": "classification", "labels": labels, "licence": old.licence if old else licence, "files": files}
    return check_set(values, "set.yaml", ClassificationSet)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder beside data/, on the same disk, so that moving files into data/ is one step each."""
    folder = Path(f"data.{os.getpid()}.tmp")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def published(folder: Path, new: DataSet, file: Path, workspace: Path) -> Iterator[None]:
    """Put `file` and the new set.yaml into `folder`; if the body fails, put everything back.

    Files that only the old set named leave; others stay. None is written to: it may be a link into DVC's cache.
    """
    created = not folder.exists()
    target, old = folder / file.name, workspace / "old"
    prepared = workspace / "set.yaml"
    prepared.write_text(dump_set(new), encoding="utf-8")
    try:
        before = {part.path for part in read_any(folder).files}
    except DataError:  # no set yet, or one whose set.yaml is broken and replaced
        before = set()
    leaving = before - {part.path for part in new.files} | {"set.yaml", file.name}
    old.mkdir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in list(folder.iterdir()):
            if path.name in leaving:
                os.replace(path, old / path.name)
        os.replace(file, target)
        os.replace(prepared, folder / "set.yaml")
        yield
    except BaseException:
        if created:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            target.unlink(missing_ok=True)
            for path in old.iterdir():
                os.replace(path, folder / path.name)
        raise


def existing(name: str, replace: bool) -> DataSet | None:
    """The set that is extended, or None for a new one. Raises UsageError for a bad name."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name):
        raise UsageError(f"`{name}` is no name for a set: use small letters, digits, - and _")
    old = read_any(DATA / name) if (DATA / name / "set.yaml").exists() and not replace else None
    if old and old.kind == "control":
        raise UsageError(f"data/{name} judges models and no stage trains on it: choose another set name for your rows")
    return old
