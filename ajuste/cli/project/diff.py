"""`ajuste diff`: which metrics and parameters differ between two revisions, as Markdown."""

from typing import Annotated

import typer


def command(
    old: Annotated[str, typer.Argument(help="A git revision: a branch, tag or commit.")],
    new: Annotated[str | None, typer.Argument(help="Another one. Default: the working tree.")] = None,
) -> None:
    """Write tables of the metrics (metrics/) and parameters (params.yaml) that differ: a comment for a pull request.

    Examples:  ajuste diff main   |   ajuste diff v1.2 HEAD
    """
    from ajuste.tracking.project.diff import diff

    typer.echo(diff(old, new), nl=False)
