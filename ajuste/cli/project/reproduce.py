"""`ajuste reproduce`: make a recorded result again in a clean clone and compare every out."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    reference: Annotated[
        str, typer.Argument(help="A git revision, or a registered version: models:/NAME@champion, NAME/3.")
    ] = "HEAD",
    keep: Annotated[Path | None, typer.Option(help="Keep the clone in this new folder.")] = None,
    tolerance: Annotated[
        float, typer.Option(help="Largest |a - b| / max(1, |a|), where the hardware is another than the record's.")
    ] = 1e-3,
    check: Annotated[
        bool, typer.Option("--check", help="Run nothing: does dvc.lock fit the sources? Seconds.")
    ] = False,
) -> None:
    """Clone, bring the data by digest, run the stages again, compare all outs. Exit code 1 if anything differs.

    Of a registered version: the commit, dvc.lock and params.yaml that it was made with, only the stages that it needs;
    its registered files are compared too, and the verdict becomes its tag `reproduced`.

    Examples:  ajuste reproduce   |   ajuste reproduce v1.2 --keep /tmp/again   |   ajuste reproduce --check

    ajuste reproduce models:/reviews-classifier@champion   |   ajuste reproduce assistant/3 --tolerance 1e-2
    """
    from ajuste.core.errors import UsageError
    from ajuste.tracking.again import reproduce

    if check:
        if reference != "HEAD" or keep:
            raise UsageError("--check looks at the working tree alone: leave out the reference and --keep")
        stale = reproduce.check()
        data = "" if Path("data").is_dir() else "; raw data is not here and was not compared (`ajuste data pull`)"
        typer.echo("\n".join(["dvc.lock does not fit what stands here:", *(f"  {line}" for line in stale)])
                   if stale else f"dvc.lock fits: every input is the recorded one{data}")
        raise typer.Exit(1 if stale else 0)
    verdict = reproduce.reproduce(reference, keep, tolerance)
    typer.echo(reproduce.report(verdict))
    raise typer.Exit(0 if verdict.good else 1)
