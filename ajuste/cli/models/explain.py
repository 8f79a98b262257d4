"""`ajuste explain`: look inside a training step. `explain ppo` shows a recorded update token by token; so do `grpo` and
`rloo`."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Look inside what was trained, token by token.", no_args_is_help=True)
UPDATE = typer.Option(help="One of `record` in the section of the method.", min=1)
ROWS = typer.Option(help="How many episodes to print, from the first.", min=1)
OUTPUT = typer.Option("--output", "-o", help="Page to write [reports/<method>-N.html].")


@app.callback()
def explain() -> None:
    """Look inside what was trained, token by token."""


@app.command("ppo")
def ppo(
    update: Annotated[int, UPDATE],
    rows: Annotated[int, ROWS] = 2,
    folder: Annotated[Path, typer.Option(help="What stage `ppo` wrote.")] = Path("artifacts/adapters/ppo"),
    output: Annotated[Path | None, OUTPUT] = None,
) -> None:
    """Show which reward, KL, value and advantage each token got in an update of PPO, and how its ratio moved.

    Prints the first episodes and writes all of them as a page.

    Examples:  ajuste explain ppo --update 5   |   ajuste explain ppo --update 15 --rows 4 -o reports/last.html
    """
    _show("ppo", update, rows, folder, output)


@app.command("grpo")
def grpo(
    update: Annotated[int, UPDATE],
    rows: Annotated[int, ROWS] = 4,
    folder: Annotated[Path, typer.Option(help="What stage `grpo` wrote.")] = Path("artifacts/adapters/grpo"),
    output: Annotated[Path | None, OUTPUT] = None,
) -> None:
    """Show what each response of a group was paid in an update of GRPO, and what its tokens learnt.

    Examples:  ajuste explain grpo --update 5   |   ajuste explain grpo --update 15 --rows 8 -o reports/last.html
    """
    _show("grpo", update, rows, folder, output)


@app.command("rloo")
def rloo(
    update: Annotated[int, UPDATE],
    rows: Annotated[int, ROWS] = 4,
    folder: Annotated[Path, typer.Option(help="What stage `rloo` wrote.")] = Path("artifacts/adapters/rloo"),
    output: Annotated[Path | None, OUTPUT] = None,
) -> None:
    """Show what each response of a group was paid in an update of RLOO, and what its tokens learnt.

    Examples:  ajuste explain rloo --update 5
    """
    _show("rloo", update, rows, folder, output)


def _show(method: str, update: int, rows: int, folder: Path, output: Path | None) -> None:
    """The first episodes on the terminal, all of them as a page."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ajuste.core.errors import UsageError
    from tasks.rl import explain as explained

    found = explained.read(folder, update, method)
    columns = found.columns
    console = Console(highlight=False)
    console.print(Text(explained.headline(found), "bold"))
    for episode in found.episodes[:rows]:
        console.print()
        console.print(Text(explained.visible(episode.prompt), "dim"))
        console.print(explained.figures(episode))
        table = Table("token", *columns, box=None, pad_edge=False)
        for column in table.columns[1:]:
            column.justify, column.no_wrap = "right", True
        for token in episode.tokens:
            style = "" if not token.advantage else "green" if token.advantage > 0 else "red"
            cells = [Text(text) for text in explained.numbers(token, columns)]
            cells[columns.index("advantage")].stylize(style)
            table.add_row(Text(explained.visible(token.text), style), *cells)
        console.print(table)
    page = output or Path("reports") / f"{method}-{update}.html"
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(explained.to_html(found), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {page}: {error.strerror}") from None
    console.print(f"\nall {len(found.episodes)} episodes: {page}", soft_wrap=True)
