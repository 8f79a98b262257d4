"""What `ajuste data add` does for every kind of set: look at a file, name it, publish the set, or change nothing.

A new file is prepared beside data/ and moved in only when everything is known to be right; if recording it in data.dvc
fails, or the command is interrupted, data/ is put back as it was.
"""

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ajuste.cli.data.kinds import DataSet, read_any
from ajuste.core.errors import DataError, UsageError
from ajuste.rows.read.files import printable, shown_name
from ajuste.rows.read.opened import PACKINGS, inner_name
from ajuste.rows.read.records import record_columns
from ajuste.rows.sets.base import Set, dump_set
from ajuste.rows.split import split_of, split_text, text_digest

DATA = Path("data")
FORMATS = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl",
           ".parquet": "parquet", ".pq": "parquet", ".txt": "txt", ".conll": "conll", ".bio": "conll"}  # fmt: skip
BATCH_ROWS = 4096
SHOWN_ROWS = 3


@dataclass(frozen=True)
class Asked:
    """What `ajuste data add` was asked for."""

    name: str
    file: str
    mapping: dict[str, str]  # the layout's own name -> the column's name in the file
    labels: str = ""
    layout: str = ""
    prompt: str = ""
    templates: str = ""
    replace: bool = False
    source: str = ""
    licence: str = "unknown"
    use: bool = False


@dataclass
class Seen:
    """What a file holds."""

    rows: int = 0
    unreadable: int = 0
    first_problem: str = ""
    damaged: int = 0  # rows whose label no file can store
    values: Counter = field(default_factory=Counter)  # label, tag, category or number of responses -> rows
    first: list = field(default_factory=list)  # rows, to be shown
    roles: Counter = field(default_factory=Counter)  # of turns
    splits: Counter = field(default_factory=Counter)  # (index in SPLITS, label or "") -> rows

    def place(self, about: str, label: str = "") -> None:
        """Count a row in the split that its text decides."""
        self.splits[split_of(text_digest(split_text(about))), label] += 1

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

    def unknown_roles(self) -> list[str]:
        """A line that names the roles that no template knows, if there are any."""
        known = ("system", "user", "assistant", "text")
        found = [f"`{printable(role)[:40]}` {n:,}" for role, n in self.roles.most_common() if role not in known]
        if not found:
            return []
        return [f"roles that are not known, so their rows will go to quarantine as role_order: {', '.join(found[:10])}"]

    def check_any(self, path: Path, layout: str) -> None:
        """Raise DataError if not one row could be read."""
        if self.unreadable == self.rows:
            raise DataError(f"{path.name}: not one row can be read as {layout}; first: {self.first_problem}")


def mapping_from(parts: list[str]) -> dict[str, str]:
    """["text=review", "label=sentiment"] as a dictionary, whatever the keys."""
    pairs = [part.partition("=") for part in parts]
    for part, (key, _, column) in zip(parts, pairs, strict=True):
        if not key or not column:
            raise UsageError(f"--map {part}: write text=COLUMN and label=COLUMN, or of instructions instruction=COLUMN")
    return {key: column for key, _, column in pairs}


def listed_columns(path: Path, form: str) -> str:
    """The columns of a file for messages."""
    found = record_columns(path, form)
    return (", ".join(map(shown_name, found[:30])) + (", ..." if len(found) > 30 else "")) or "none"


def dropped(path: Path, form: str, used: set[str]) -> list[str]:
    """A line that names the columns of a file that nothing uses, if there are any."""
    left = [shown_name(name) for name in record_columns(path, form) if name not in used] if form != "conll" else []
    shown = ", ".join(left[:20]) + (", ..." if len(left) > 20 else "")
    return [f"not used, so dropped: column{'s' * (len(left) > 1)} {shown}"] if left else []


def format_of(path: Path) -> str:
    """The format by the file's ending. Raises UsageError that lists the known ones."""
    ending = Path(inner_name(path)).suffix.lower()
    if ending not in FORMATS:
        raise UsageError(
            f"{path}: `{ending}` is no known ending: {' '.join(FORMATS)}, packed or not ({' '.join(PACKINGS)}), or a "
            "folder of texts by label"
        )
    return FORMATS[ending]


def free_name(path: Path, folder: Path, taken: list[str]) -> str:
    """The file's name, or name-2 and so on if the set has another file of that name.

    Raises UsageError if the set holds this very file already.
    """
    suffix = "".join(path.suffixes[-2:] if path.suffix.lower() in PACKINGS else path.suffixes[-1:])
    stem = path.name.removesuffix(suffix)
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


@dataclass
class Added:
    """A set as it will be, what its new file holds, what is said about it, and what params.yaml needs to use it."""

    set: Set
    seen: Seen
    layout: str  # of the file, as it is said
    said: list[str]
    use: Callable[[], None]


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
