"""`ajuste predict`: label or score every text of a file with a registered model, as JSON lines or CSV on stdout."""

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ajuste.cli.models.names import errors_told, open_models

if TYPE_CHECKING:
    from ajuste.serving.loading import Served

BATCH_ROWS = 256
FORMATS = {".txt": "txt", ".csv": "csv", ".tsv": "tsv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl",
           ".parquet": "parquet"}  # fmt: skip


class Output(StrEnum):
    jsonl = "jsonl"
    csv = "csv"


def command(
    name: Annotated[str, typer.Argument(help="NAME, NAME@ALIAS or NAME/VERSION of the registry.")],
    file: Annotated[Path, typer.Argument(help="Texts: .txt, one a line; .csv, .tsv, .json(l), .parquet by column.")],
    column: Annotated[str, typer.Option(help="The column, or JSON key, that holds the text.")] = "text",
    output: Annotated[Output, typer.Option(help="Format of what is written to standard output.")] = Output.jsonl,
    prompt: Annotated[str | None, typer.Option(help="Of a reward model: what the texts are responses to.")] = None,
) -> None:
    """Label every text of FILE, or score it as a response. A row without a usable text gets its reason in `error`.

    Examples:  ajuste predict reviews-classifier new.txt

               ajuste predict reviews-classifier@challenger new.csv --column review --output csv > labels.csv

               ajuste predict ratings-reward answers.txt --prompt "Write a one-sentence movie review."
    """
    from ajuste.core.errors import DataError

    rows = read(file, column)
    first = next(rows, None)        # a wrong file is found before a model is loaded
    if first is None:
        raise DataError(f"{file} holds no texts")

    from rich.console import Console

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")     # see ajuste/cli/models/serve.py
    with Console(stderr=True).status(f"loading {name}"):
        with errors_told():
            served = open_models().get(name)
        answer, empty = answerer(served, name, prompt)
    who = {"model": served.name, "version": served.version, "alias": served.alias}
    typer.echo(f"{name}: version {served.version}{f', {served.alias}' if served.alias else ''}", err=True)

    failed = 0
    write = writer(output, [key for key in empty if key != "probabilities"])
    try:
        for batch in with_progress(batches(chain([first], rows)), file):
            good = [text for _, text, error in batch if error is None]
            answers = iter(answer(good))
            for row, text, error in batch:
                line = {"row": row, **empty, **who, "error": error}
                if error is None:
                    line |= next(answers)
                failed += line["error"] is not None
                write(line | {"text": text})
        sys.stdout.flush()
    except BrokenPipeError:         # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if failed:
        typer.echo(f"{failed} rows have no {next(iter(empty))}: their `error` says why", err=True)


def answerer(served: "Served", name: str, prompt: str | None) -> tuple[Callable[[list[str]], list[dict]], dict]:
    """What gives each text its part of the line, and that part when there is no answer. Raises UsageError."""
    from ajuste.core.errors import UsageError

    if served.kind == "decoder":
        raise UsageError(f"`{name}` labels no texts, it writes them: `ajuste chat {name}` talks with it")
    if served.kind == "classifier":
        if prompt is not None:
            raise UsageError(f"`{name}` labels texts whatever they answer: leave out --prompt")
        return partial(labels, served), {"label": None, "probability": None, "probabilities": None}
    if prompt is None:
        raise UsageError(f"`{name}` scores responses: say with --prompt what the texts are responses to")
    return partial(scores, served, prompt), {"score": None}


def labels(served: "Served", texts: list[str]) -> list[dict]:
    """Label and probabilities of each text."""
    found = []
    for probabilities in served.probabilities(texts).tolist():
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        named = dict(zip(served.card["labels"], probabilities, strict=True))
        found.append({"label": served.card["labels"][best], "probability": probabilities[best], "probabilities": named})
    return found


def scores(served: "Served", prompt: str, texts: list[str]) -> list[dict]:
    """The score of each text as a response to the prompt, or the reason why it has none."""
    from ajuste.models import reward
    from ajuste.serving.jobs import BadRequest
    from ajuste.serving.v1.scores import row_ids

    found, rows = [], {}
    for i, text in enumerate(texts):
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
        found.append({})
        try:
            rows[i] = row_ids(served, turns, "the text")
        except BadRequest as error:
            found[i] = {"error": str(error)}
    for i, score in zip(rows, reward.score(served.model, list(rows.values())).tolist(), strict=True):
        found[i] = {"score": score}
    return found


def batches(rows: Iterator[tuple]) -> Iterator[list[tuple]]:
    """Lists of BATCH_ROWS rows, the last one shorter."""
    while batch := list(islice(rows, BATCH_ROWS)):
        yield batch


def with_progress(found: Iterator[list[tuple]], file: Path) -> Iterator[list[tuple]]:
    """The batches, counted on standard error where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description} {task.completed} rows"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(file.name, total=None)
        for batch in found:
            yield batch
            progress.advance(task, len(batch))


def writer(output: Output, answered: list[str]) -> Callable[[dict], object]:
    """Writes one answer to standard output. CSV has the same columns for any model: no `probabilities`."""
    if output is Output.jsonl:
        return lambda line: print(json.dumps(line, ensure_ascii=False))
    table = csv.writer(sys.stdout, lineterminator="\n")
    names = ["row", *answered, "model", "version", "alias", "error", "text"]
    table.writerow(names)
    return lambda line: table.writerow([line[name] for name in names])


# --- reading: (row number from 1, text, None) or (row number, None, what is wrong with it) --------------------------


def read(file: Path, column: str) -> Iterator[tuple[int, str | None, str | None]]:
    """The texts of a file, one at a time, read as `ajuste data add` reads it; of .txt a text is a line.

    Raises UsageError for a file that is none of these formats, DataError for what is wrong with it as a whole.
    """
    from ajuste.core.errors import DataError, UsageError
    from ajuste.rows.read.files import check_file, printable
    from ajuste.rows.read.opened import inner_name, open_bytes
    from ajuste.rows.read.records import read_records, record_columns

    if not file.is_file():
        raise UsageError(f"{file} is no file")
    form = FORMATS.get(Path(inner_name(file)).suffix.lower())
    if form is None:
        raise UsageError(f"{file}: `{file.suffix}` is none of {', '.join(FORMATS)}")
    with open_bytes(file) as raw:
        head = raw.read(8192)
    if not head.strip():
        raise DataError(f"{file} holds no texts")
    if form == "txt":
        if b"\0" in head:
            raise UsageError(f"{file} is a binary file, not text")
        yield from _lines(file)
        return
    check_file(file, form)
    found = record_columns(file, form)
    if column not in found and (form not in ("json", "jsonl") or found):
        known = ", ".join(map(printable, found))
        raise UsageError(f"{file} has no column `{column}`: it has {known}; name one with --column")
    row = 0
    for batch in read_records(file, form, BATCH_ROWS):
        for record in batch:
            row = record.line if form == "jsonl" and record.line > row else row + 1
            if record.problem:
                yield row, None, printable(record.problem)
            elif column not in record.values:
                yield row, None, f"the row has no key `{column}`"
            else:
                yield row, *_checked(record.values[column])


def _checked(text: object) -> tuple[str | None, str | None]:
    from ajuste.rows.clean import visible

    if not isinstance(text, str):
        return None, "the text is missing" if text is None else f"the text is no string but {type(text).__name__}"
    if any("\ud800" <= char <= "\udfff" for char in text):
        return None, "the text is no valid UTF-8"
    return (text, None) if visible(text) else (None, "the text is empty")


def _lines(file: Path) -> Iterator[tuple[int, str | None, str | None]]:
    from ajuste.rows.read.opened import open_bytes

    # a byte that is no UTF-8 becomes a lone surrogate, and so a fault of its row alone
    with io.TextIOWrapper(open_bytes(file), encoding="utf-8-sig", errors="surrogateescape", newline="\n") as opened:
        for number, line in enumerate(opened, 1):
            if line.strip():            # a blank line is the end of a paragraph, not a text
                yield number, *_checked(line.rstrip("\r\n"))
