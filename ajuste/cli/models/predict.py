"""`ajuste predict`: label or score every text of a file with a registered model, as JSON lines or CSV on stdout."""

import csv
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
FORMATS = (".txt", ".csv", ".tsv", ".jsonl")


class Output(StrEnum):
    jsonl = "jsonl"
    csv = "csv"


def command(
    name: Annotated[str, typer.Argument(help="NAME, NAME@ALIAS or NAME/VERSION of the registry.")],
    file: Annotated[Path, typer.Argument(help="Texts: .txt, one a line; .csv, .tsv or .jsonl with a text column.")],
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
    from ajuste.serving.generation import BadRequest
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
    """The texts of a file, one at a time. Raises UsageError for a file that is none of these formats."""
    from ajuste.core.errors import UsageError

    if not file.is_file():
        raise UsageError(f"{file} is no file")
    if file.suffix.lower() not in FORMATS:
        raise UsageError(f"{file}: `{file.suffix}` is none of {', '.join(FORMATS)}")
    with file.open("rb") as raw:
        if b"\0" in raw.read(8192):
            raise UsageError(f"{file} is a binary file, not text")
    readers = {".txt": _lines, ".jsonl": _json_lines, ".csv": _table, ".tsv": _table}
    # a byte that is no UTF-8 becomes a lone surrogate, and so a fault of its row alone
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as opened:
        for row, text in readers[file.suffix.lower()](opened, column, file):
            yield row, *_checked(text)


def _checked(text: object) -> tuple[str | None, str | None]:
    if isinstance(text, ValueError):
        return None, str(text)
    if not isinstance(text, str):
        return None, "the text is missing" if text is None else f"the text is no string but {type(text).__name__}"
    if any("\ud800" <= char <= "\udfff" for char in text):
        return None, "the text is no valid UTF-8"
    return (text, None) if text.strip() else (None, "the text is empty")


def _lines(opened, column: str, file: Path) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(opened, 1):
        if line.strip():            # a blank line is the end of a paragraph, not a text
            yield number, line.rstrip("\r\n")


def _json_lines(opened, column: str, file: Path) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(opened, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            yield number, value[column]
        except (json.JSONDecodeError, RecursionError):
            yield number, ValueError("the line is no valid JSON")
        except (KeyError, TypeError, IndexError):
            yield number, ValueError(f"the line has no key `{column}`")


def _table(opened, column: str, file: Path) -> Iterator[tuple[int, object]]:
    from ajuste.core.errors import DataError, UsageError

    csv.field_size_limit(2**27)
    table = csv.DictReader(opened, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
    if table.fieldnames is None:
        return
    if column not in table.fieldnames:
        known = ", ".join(table.fieldnames)
        raise UsageError(f"{file} has no column `{column}`: it has {known}; name one with --column")
    try:
        for number, row in enumerate(table, 1):
            yield number, row[column]
    except csv.Error as error:
        raise DataError(f"{file}:{table.line_num}: {error}") from None
