"""`ajuste compare`: registered versions side by side."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """How the comparison is written."""

    terminal = "terminal"
    markdown = "markdown"
    json = "json"


def command(
    name: Annotated[str, typer.Argument(help="A registered name, for example reviews-classifier or assistant.")],
    versions: Annotated[
        list[str] | None,
        typer.Argument(help="Numbers or aliases. Default: those with an alias, and the newest of each strategy."),
    ] = None,
    format: Annotated[Format, typer.Option("--format", "-f", help="How to write it.")] = Format.terminal,
    html: Annotated[bool, typer.Option("--html", help="A page with pictures; of all versions, unless named.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write to a file instead; a page to reports/compare-NAME.html by default."),
    ] = None,
) -> None:
    """Compare registered versions: metrics with intervals, the parameters that differ, where they come from.

    Of assistants also what each version, and the base, answered to the same prompts; a version that was made from
    another beside that one, on the prompts of its evaluation.

    Examples:  ajuste compare reviews-classifier   |   ajuste compare reviews-classifier champion 7

    ajuste compare assistant   |   ajuste compare assistant challenger 3   |   ajuste compare ratings-reward

    ajuste compare reviews-classifier --format markdown --output reports/compare.md

    ajuste compare reviews-classifier --html   |   ajuste compare assistant champion challenger --html -o /tmp/two.html
    """
    import json

    from rich.console import Console

    console = Console()
    with Console(stderr=True).status("Reading the registry"):
        from ajuste.core.errors import UsageError
        from ajuste.tracking.comparing import text as text
        from ajuste.tracking.comparing.compare import compare
        from ajuste.tracking.pages.compare_page import write_page
        from ajuste.tracking.registry import registry

        if html and not versions:
            versions = [version.version for version in registry.versions(name)]
        found = compare(name, versions)
        if html:
            typer.echo(write_page(found, output or Path("reports") / f"compare-{name}.html"))
            return
    if format is Format.json:
        written = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    elif format is Format.markdown:
        written = text.to_markdown(found)
    else:
        written = text.to_terminal(found, console.width, console.is_terminal and output is None)
    if output is None:
        typer.echo(written, nl=False)
        return
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(written, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}") from None
    typer.echo(output)
