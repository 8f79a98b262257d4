"""`ajuste run`: the whole way from data to registered models; what is up to date is not run again."""

import os
from typing import Annotated

import typer


def command(
    targets: Annotated[
        list[str] | None,
        typer.Argument(help="Stages or registered names (reviews-classifier, assistant, ratings-reward); all if none."),
    ] = None,
    from_stage: Annotated[
        str | None, typer.Option("--from", help="Run this stage again, and what follows from it.")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", help="Stop after this stage, in the order of dvc.yaml.")
    ] = None,
    beyond_memory: Annotated[
        bool, typer.Option("--beyond-memory", help="Start a stage though `ajuste plan` says that it does not fit.")
    ] = False,
) -> None:
    """Run every stage that is stale, or those that the targets need; register what is new, and judge it.

    Examples:  ajuste run   |   ajuste run ratings-reward   |   ajuste run encode_reviews   |   ajuste run --from reward
    """
    typer.echo(f"ajuste run: {', '.join(targets or ['all stages'])}; what is stale is being looked up", err=True)
    from flows._plan import Asked, check, look_ahead

    if beyond_memory:
        from ajuste.tracking.planning.check import TOLD

        os.environ[TOLD] = "1"
    asked = Asked(tuple(targets or ()), from_stage, until)
    check(asked)  # a mistake is said before Prefect is started
    answering()
    look_ahead(asked)
    settle()

    from flows._steps import StageFailed
    from flows.pipeline import adapt

    try:
        adapt(list(asked.targets), from_stage, until)
    except StageFailed as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1 if error.kind != "usage" else 2) from None


def settle() -> None:
    """Prefect's settings of this run. Before it is imported: it reads them once."""
    from ajuste.cli import logins
    from ajuste.core.home import home

    home().mkdir(parents=True, exist_ok=True)  # Prefect makes its folder in it, not the folders above
    os.environ.setdefault("PREFECT_HOME", str(home() / ".prefect"))
    if not os.environ.get("PREFECT_API_URL"):
        os.environ.update(logins.alone())  # Prefect starts a server for this run, which a page could ask too
    # its own 20 seconds are too short on a busy machine, where the first start also makes the database
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
    # the terminal shows our own lines; see flows/_progress.py
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")


def answering() -> None:
    """Raise UsageError if $PREFECT_API_URL names a server that does not answer: Prefect itself would try for long."""
    from ajuste.cli.project.deployments import server
    from ajuste.core.errors import UsageError
    from ajuste.tracking.runs.store import without_password

    address = os.environ.get("PREFECT_API_URL")
    if address and server() is None:
        raise UsageError(f"the Prefect server {without_password(address)} of PREFECT_API_URL does not answer: "
                         "start it, or unset PREFECT_API_URL to run without one")  # fmt: skip
