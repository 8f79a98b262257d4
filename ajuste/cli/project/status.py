"""`ajuste status`: what is stale, what ran last, which version answers, when what runs next."""

import json

from rich.console import Console
from rich.table import Table


def command() -> None:
    """Show each stage: up to date or stale and why, and how long it took last time; then the registered models with
    their champions; then the deployments of the Prefect server, if one answers."""
    from ajuste.core.home import home
    from ajuste.core.stages import stage_names
    from ajuste.tracking.project import dvc, git, raw_data
    from ajuste.tracking.registry import registry

    console = Console()
    stale = dvc.status()
    table = Table("stage", "state", "last run", "why", title="Stages")
    for name in stage_names():
        path = home() / ".state" / f"{name}.json"
        state = json.loads(path.read_text()) if path.exists() else {}
        seconds = f"{state['seconds']:.1f} s" if state.get("seconds") else ""
        error = state.get("error")
        if error:
            seconds = f"{error['kind']} error"
        table.add_row(
            name, "[yellow]stale[/]" if name in stale else "[green]up to date[/]", seconds, _why(stale.get(name))
        )
    console.print(table)
    data = raw_data.status()
    console.print(
        f"data/ against data.dvc: {data}   code against git: {'changed' if git.dirty() else 'committed'}"
    )
    for name, text in registry.summary().items():
        console.print(f"{name}: {text}")
    _show_deployments(console)


def _show_deployments(console: Console) -> None:
    import httpx

    from ajuste.cli.project import deployments
    from ajuste.core.errors import UsageError

    try:
        api = deployments.server()
    except UsageError as error:
        console.print(f"deployments: {error}")
        return
    if api is None:
        console.print("deployments: no Prefect server answers (`ajuste ui` or `make stack` starts one)")
        return
    try:
        rows = deployments.lines(deployments.deployments(api))
    except httpx.HTTPError as error:
        console.print(f"deployments: {api} did not say ({type(error).__name__}): try again")
        return
    if not rows:
        console.print(f"deployments: none on {api} (`ajuste deploy` makes them)")
        return
    table = Table("deployment", "next run", "last run", "state", title=f"Deployments of {api}")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _why(changes: list | None) -> str:
    """DVC's reasons as one short line."""
    words = []
    for change in changes or []:
        if isinstance(change, str):
            words.append(change)
            continue
        for kind, items in change.items():
            for path, what in items.items():
                keys = ", ".join(what) if isinstance(what, dict) else path
                words.append(f"{kind}: {keys}" if isinstance(what, dict) else f"{what} {path}")
    return "; ".join(words)
