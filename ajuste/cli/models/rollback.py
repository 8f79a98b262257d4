"""`ajuste rollback`: the champion before becomes champion again."""

from typing import Annotated

import typer


def command(
    name: Annotated[str, typer.Argument(help="A registered name, for example reviews-classifier.")],
    why: Annotated[str, typer.Option(help="The reason; it is kept with the move.")] = "no reason given",
) -> None:
    """Go back to the champion before, at once and without asking the gate; again, and it goes forth again.

    Example:  ajuste rollback reviews-classifier --why "angry letters"
    """
    import gc

    # what MLflow's import makes is needed to the end: looking for garbage in it took a quarter of the time
    gc.disable()
    try:
        from ajuste.cli.models.promote import told
        from ajuste.tracking.project.git import author
        from ajuste.tracking.registry import promotion

        typer.echo(told(promotion.rollback(name, author(), why)))
    finally:
        gc.freeze()
        gc.enable()
