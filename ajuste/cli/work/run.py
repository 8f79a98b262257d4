"""`ajuste run`: the whole way from data to registered models; what is up to date is not run again."""

import os
from typing import Annotated

import typer


def command(
    from_stage: Annotated[
        str | None, typer.Option("--from", help="Run this stage again, and what follows from it.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="Stop after this stage.")] = None,
) -> None:
    """Run every stage that is stale, register what is new.

    Examples:  ajuste run   |   ajuste run --until encode_reviews   |   ajuste run --from classify_lora
    """
    from ajuste.core.errors import UsageError
    from ajuste.core.home import home
    from ajuste.core.stages import stage_names

    for name in (from_stage, until):
        if name is not None and name not in stage_names():
            raise UsageError(f"dvc.yaml has no stage `{name}`: stages are {', '.join(stage_names())}")
    os.environ.setdefault("PREFECT_HOME", str(home() / ".prefect"))
    # its own 20 seconds are too short on a busy machine, where the first start also makes the database
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
    # the terminal shows our own lines; see flows/_progress.py
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")

    from flows._steps import StageFailed
    from flows.pipeline import adapt

    try:
        adapt(from_stage, until)
    except StageFailed as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1 if error.kind != "usage" else 2) from None
