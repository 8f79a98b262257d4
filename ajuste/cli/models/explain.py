"""`ajuste explain`: look inside a training step. `explain ppo` shows a recorded update token by token."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Look inside what was trained, token by token.", no_args_is_help=True)


@app.callback()
def explain() -> None:
    """Look inside what was trained, token by token."""


@app.command("ppo")
def ppo(
    update: Annotated[int, typer.Option(help="One of `ppo.record` in params.yaml.", min=1)],
    rows: Annotated[int, typer.Option(help="How many episodes to print, from the first.", min=1)] = 2,
    folder: Annotated[Path, typer.Option(help="What stage `ppo` wrote.")] = Path("artifacts/adapters/ppo"),
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Page to write [reports/ppo-N.html].")] = None,
) -> None:
    """Show which reward, KL, value and advantage each token got in an update of PPO, and how its ratio moved.

    Prints the first episodes and writes all of them as a page.

    Examples:  ajuste explain ppo --update 5   |   ajuste explain ppo --update 15 --rows 4 -o reports/last.html
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ajuste.core.errors import UsageError
    from tasks.rl import explain as explained

    found = explained.read(folder, update)
    console = Console(highlight=False)
    console.print(Text(explained.headline(found), "bold"))
    for episode in found.episodes[:rows]:
        console.print()
        console.print(Text(explained.visible(episode.prompt), "dim"))
        console.print(explained.figures(episode))
        table = Table("token", *explained.COLUMNS, box=None, pad_edge=False)
        for column in table.columns[1:]:
            column.justify, column.no_wrap = "right", True
        for token in episode.tokens:
            style = "" if not token.advantage else "green" if token.advantage > 0 else "red"
            cells = [Text(text) for text in explained.numbers(token)]
            cells[6].stylize(style)
            table.add_row(Text(explained.visible(token.text), style), *cells)
        console.print(table)
    page = output or Path("reports") / f"ppo-{update}.html"
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(explained.to_html(found), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {page}: {error.strerror}") from None
    console.print(f"\nall {len(found.episodes)} episodes: {page}", soft_wrap=True)
