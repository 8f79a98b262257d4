"""`ajuste show-mask`: encoded conversations with the tokens that are trained in colour."""

import re
from pathlib import Path
from typing import Annotated

import typer

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a text from outside must not steer the terminal


def command(
    set: Annotated[str, typer.Option(help="A folder of artifacts/encoded/.")] = "instructions",
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    rows: Annotated[int, typer.Option(help="How many rows, from the first.", min=1)] = 3,
) -> None:
    """Print rows as they train: the responses and their ends of turn in colour, prompts dim.

    \b
    ajuste show-mask
    ajuste show-mask --split test --rows 10 | less     (marks [[ ]] in place of colour)
    """
    from rich.console import Console
    from rich.text import Text

    from ajuste.rows.encoded.mask import read_masked

    found = read_masked(Path("artifacts/encoded") / set, Path("artifacts/base/decoder"), split, rows)
    console = Console(highlight=False, soft_wrap=True)
    coloured = console.is_terminal and not console.no_color
    mark = Text("in colour", "bold green") if coloured else Text("in [[ ]]")
    console.print(Text.assemble(f"{set}, {split}: what is trained stands ", mark))
    for row in found:
        console.print()
        console.print(Text(row.caption(), "bold"))
        console.print(Text.assemble(*(_part(text, trained, coloured) for text, trained in row.spans)))


def _part(text: str, trained: bool, coloured: bool) -> tuple[str, str]:
    shown = CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", text)
    if coloured:
        return shown, "bold green" if trained else "dim"
    return f"[[{shown}]]" if trained else shown, ""
