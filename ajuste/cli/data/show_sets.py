"""What `ajuste data show` prints of one file of a set, by the set's kind."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import typer

from ajuste.cli.data import instruction_sets, label_sets, preference_sets, question_sets, sets, word_sets
from ajuste.cli.data.sets import BATCH_ROWS
from ajuste.cli.project.ui_address import working
from ajuste.rows.read.as_json import as_json
from ajuste.rows.read.files import printable
from ajuste.rows.read.records import read_records
from ajuste.rows.read.texts import read_rows
from ajuste.rows.read.values import looked_up
from ajuste.rows.sets.preferences import read_set


def show_texts(path: Path, file) -> None:
    """A file of texts and classes: columns, rows by class, the first rows."""
    with working(f"Reading {file.path}"):
        seen = label_sets.look(path, file)
    columns = ", ".join(f"{key} = {column}" for key, column in file.columns.model_dump(exclude_none=True).items())
    typer.echo(f"\n{file.path}: {seen.rows:,} rows, {file.format}, {columns}, from {file.source}")
    names = file.label_names or {}
    counts: Counter = Counter()
    for value, n in seen.values.items():
        counts[looked_up(names, value)] += n
    typer.echo("  " + ", ".join(f"{label[:40] or '(empty)'} {n:,}" for label, n in counts.most_common(20)))
    for row in next(read_rows(path, file.format, file.columns, 3)):
        text = " ".join(printable(row.text).split())
        typer.echo(f"  line {row.line}: [{printable(row.label)}] {text[:100]}{'...' if len(text) > 100 else ''}")


def show_instructions(path: Path, file) -> None:
    """A file of instructions: layout, rows by category, the first rows as messages."""
    with working(f"Reading {file.path}"):
        seen = instruction_sets.look(path, file)
    columns = "".join(f", {key} = {column}" for key, column in file.columns.items())
    typer.echo(f"\n{file.path}: {seen.rows:,} rows, {file.format}, layout {file.layout}{columns}, from {file.source}")
    typer.echo(f"  categories: {instruction_sets.categories(seen)}")
    _show_first(seen, instruction_sets.shown)


def show_preferences(path: Path, file) -> None:
    """A file of preferences: layout, rows by number of responses, the first rows, best response first."""
    columns = "".join(f", {key} = {column}" for key, column in file.columns.items())
    what = f"{file.format}, layout {file.layout}{columns}, from {file.source}"
    if file.layout == "raters":
        typer.echo(f"\n{file.path}: {what}")
        return
    with working(f"Reading {file.path}"):
        seen = preference_sets.look(path, read_set(path.parent), file)
    typer.echo(f"\n{file.path}: {seen.rows:,} rows, {what}")
    typer.echo(f"  {preference_sets.contents(seen)}")
    _show_first(seen, preference_sets.shown)


def _show_first(seen: sets.Seen, shown: Callable[..., str]) -> None:
    if seen.unreadable:
        typer.echo(f"  {seen.unreadable:,} rows cannot be read; first: {seen.first_problem}")
    for row in seen.first:
        typer.echo(shown(row))


def show_control(path: Path, file) -> None:
    """A file of a control set: rows, and the first ones as they stand there."""
    rows, first = 0, []
    for batch in read_records(path, file.format, BATCH_ROWS):
        rows, first = rows + len(batch), first or batch[:3]
    what = f"control set {file.name} ({file.layout})"
    typer.echo(f"\n{file.path}: {rows:,} rows, {file.format}, {what}, from {file.source}")
    for record in first:
        text = " ".join(printable(as_json(record.values)).split())
        typer.echo(f"  line {record.line}: {text[:160]}{'...' if len(text) > 160 else ''}")


def show_words(path: Path, file) -> None:
    """A file of tagged words: words by tag, the first rows."""
    with working(f"Reading {file.path}"):
        seen = word_sets.look(path, file)
    typer.echo(f"\n{file.path}: {seen.rows:,} rows, {file.format}, from {file.source}")
    typer.echo("  " + ", ".join(f"{tag[:40]} {n:,}" for tag, n in seen.values.most_common(20)))
    _show_first(seen, word_sets.shown)


def show_questions(path: Path, file) -> None:
    """A file of questions: rows by number of answers, the first rows."""
    with working(f"Reading {file.path}"):
        seen = question_sets.look(path, file)
    typer.echo(f"\n{file.path}: {seen.rows:,} rows, {file.format}, from {file.source}")
    typer.echo(f"  {question_sets.contents(seen)}")
    _show_first(seen, question_sets.shown)


SHOW = {
    "classification": show_texts,
    "instructions": show_instructions,
    "preferences": show_preferences,
    "control": show_control,
    "words": show_words,
    "questions": show_questions,
}
