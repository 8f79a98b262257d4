"""`ajuste reproduce`: make the recorded result again in a clean clone and compare every byte."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    revision: Annotated[str, typer.Argument(help="A git revision whose dvc.lock is the claim.")] = "HEAD",
    keep: Annotated[Path | None, typer.Option(help="Keep the clone in this new folder.")] = None,
) -> None:
    """Clone, bring the data by digest, run every stage again, compare all outs. Exit code 1 if anything differs.

    Examples:  ajuste reproduce   |   ajuste reproduce v1.2 --keep /tmp/again
    """
    from tracking import reproduce

    verdict = reproduce.reproduce(revision, keep)
    typer.echo(reproduce.report(verdict))
    raise typer.Exit(0 if verdict.equal else 1)
