"""`ajuste drift`: are the texts of today still like those that a model learnt from? Exit code 1 if they are not."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    name: Annotated[
        str | None, typer.Argument(help="A registered name. Default: every one with a request log; needed for --file.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="Judge the texts of a file, and not the log of the server.")
    ] = None,
    map: Annotated[
        list[str] | None, typer.Option("--map", help="text=COLUMN, and label=COLUMN to compare true labels.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Write the report as JSON.")] = False,
) -> None:
    """Compare the latest window of logged requests, or a file, with the training data. Section `drift` of policy.yaml.

    Exit code 0: no drift, 1: drift. Nothing is recorded: the flow `drift` does that every hour.

    Examples:  ajuste drift   |   ajuste drift reviews-classifier   |   ajuste drift reviews-classifier --json

    ajuste drift reviews-classifier --file new.csv --map text=review --map label=sentiment
    """
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("Reading the training data and the texts"):
        from ajuste.core.errors import UsageError
        from ajuste.tracking.verdicts import drift

        if file is not None:
            if name is None:
                raise UsageError("--file needs the NAME of the model whose training data it is compared with")
            texts, labels = texts_of(file, map or [])
            reports, log = {name: drift.judge_file(name, texts, labels)}, None
        else:
            if map:
                raise UsageError("--map belongs to --file")
            names = [name] if name else drift.names()
            if not names:
                raise UsageError("no request was logged yet: start the server with `ajuste serve --log-requests`, or "
                                 "judge a file of texts with NAME --file FILE")  # fmt: skip
            reports = {}
            for one in names:
                reports[one], log = drift.judge_latest(one)
                if log.broken:
                    console.print(f"{one}: {log.broken} lines of the log are broken, first {log.first_broken}")
    if json:
        import json as written

        typer.echo(written.dumps({one: report.as_dict() for one, report in reports.items()}, indent=2))
    else:
        for one, report in reports.items():
            _show(one, report)
    if any(report.drifts for report in reports.values()):
        raise typer.Exit(1)


def texts_of(file: Path, mapping: list[str]) -> tuple[list[str], list[str] | None]:
    """The texts of a file as `ajuste data add` reads it, and their labels if the mapping names a column of them.

    A .txt file is a text a line. Rows that cannot be read are left out and counted on standard error.
    """
    from ajuste.cli.data.label_sets import columns_from
    from ajuste.cli.data.sets import BATCH_ROWS, format_of, mapping_from
    from ajuste.core.errors import DataError, UsageError
    from ajuste.rows.read.texts import read_rows
    from ajuste.rows.sets.classification import Columns

    given = mapping_from(mapping)
    columns = columns_from(given)
    if format_of(file) == "txt":
        if given:
            raise UsageError(f"--map: {file} has no columns, each line is a text")
        if not file.is_file():
            raise DataError(f"{file} is missing: name a file that exists")
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        return [line for line in lines if line.strip()], None
    if "label" not in given:
        columns = Columns(text=columns.text, label=columns.text)  # no label column is needed
    texts, labels, bad = [], [], 0
    for batch in read_rows(file, format_of(file), columns, BATCH_ROWS):
        good = [row for row in batch if not row.problem and row.text.strip()]
        bad += len(batch) - len(good)
        texts += [row.text for row in good]
        labels += [row.label.strip() for row in good]
    if bad:
        typer.echo(f"{file}: {bad} rows have no readable text and are left out", err=True)
    return texts, labels if "label" in given else None


def _show(name: str, report) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    verdict = "[red]drift[/]" if report.drifts else "[green]no drift[/]"
    title = f"{name}: {verdict}, {report.rows} texts beside {report.reference_rows} of the training data"
    table = Table("statistic", "effect", "at least", "p, corrected", "drifts", "in words", title=title)
    for found in report.findings:
        said = found.said.removeprefix(f"{found.name}: ").rpartition(" (p = ")[0]
        table.add_row(found.name, f"{found.effect:+.3f}", f"{found.minimum:g}", f"{found.p:.2g}",
                      "[red]yes[/]" if found.drifts else "no", said)  # fmt: skip
    console.print(table)
