"""`ajuste report`: one self-contained page about the last run."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the page is written.")] = Path(
        "reports/index.html"
    ),
    open_page: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
) -> None:
    """Write one HTML page: which strategy is best, can it be trusted, and where does it come from?

    It needs no network and no other file: send it by mail, print it, keep it beside a release.

    Examples:  ajuste report   |   ajuste report --open   |   ajuste report --output /tmp/last-night.html
    """
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("Reading the last run"):
        from ajuste.tracking.pages.report import write_report

        path = write_report(output)
    typer.echo(path)
    if open_page:
        typer.launch(path.resolve().as_uri())
