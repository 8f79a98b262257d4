"""`ajuste deploy`: the deployments of infra/prefect.yaml and the automations, on a Prefect server."""

import os
import time
from typing import Annotated

import typer

SECONDS = 30.0  # a server that has just started is slow


def command(
    pool: Annotated[str, typer.Option(help="process, docker or kubernetes.")] = "process",
    preset: Annotated[str, typer.Option(help="Besides, a deployment adapt-PRESET without a schedule.")] = "",
    revision: Annotated[str, typer.Option(help="The git revision of that deployment.")] = "HEAD",
) -> None:
    """Make the work pool, deploy, apply the automations, and show when what runs next. Doing it again is harmless.

    The server is that of PREFECT_API_URL, or of `make stack`, or of `ajuste ui`. AJUSTE_WEBHOOK, if set, is called when
    a run fails.

    Examples:  ajuste deploy   |   ajuste deploy --pool docker   |   ajuste deploy --preset full
    """
    from ajuste.cli import logins
    from ajuste.cli.project import deployments
    from ajuste.core.errors import UsageError
    from ajuste.core.home import home

    api = deployments.server(SECONDS)
    if api is None:
        where = os.environ.get("PREFECT_API_URL") or f"{deployments.API} and no stack runs"
        raise UsageError(f"no Prefect server answers at {where}: start one with `ajuste ui` or `make stack`, "
                         "or name one in PREFECT_API_URL")  # fmt: skip
    os.environ["PREFECT_API_URL"] = api  # before prefect is imported
    from flows.deploy import POOLS, deploy

    names = deploy(pool, preset, revision)
    typer.echo(f"{api}: {', '.join(names)}")
    deadline = time.monotonic() + SECONDS
    while True:  # the server plans the runs of a schedule some seconds after the deploy
        found = deployments.deployments(api, SECONDS)
        if all(item.next or not item.scheduled for item in found) or time.monotonic() > deadline:
            break
        time.sleep(1)
    for name, upcoming, _, _ in deployments.lines(found):
        typer.echo(f"  {name:24} next run: {upcoming}")
    started = logins.starter_of(api, home())
    first = f"source {started / 'env'}; " if started else ""
    typer.echo(f"A worker works them off: {first}prefect worker start --pool {POOLS[pool]}   (PREFECT_API_URL={api})")
