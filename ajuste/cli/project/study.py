"""`ajuste study NAME`: a comparison that the default run leaves out, studies/<name>/dvc.yaml."""

from pathlib import Path
from typing import Annotated

import typer


def command(name: Annotated[str, typer.Argument(help="The folder under studies/; `list` shows them.")]) -> None:
    """Run a study through DVC: only its stale points are run. Models that it makes are registered.

    Examples:  ajuste study list   |   ajuste study data-size   |   ajuste study ner
    """
    from ajuste.core.errors import UsageError
    from ajuste.tracking.project import dvc, lock, raw_data

    names = sorted(path.parent.name for path in Path("studies").glob("*/dvc.yaml"))
    if name == "list":
        typer.echo("\n".join(names))
        return
    if name not in names:
        raise UsageError(f"no study `{name}`: studies are {', '.join(names)}")
    dvc.heal()
    raw_data.check()
    code = dvc.repro_study(f"studies/{name}/dvc.yaml")
    if code == 0 and (stages := lock.in_rooms(Path("studies") / name / "dvc.lock")):
        from ajuste.tracking.registry.register import register_all

        for registered, number in register_all(None, stages):
            typer.echo(f"registered {registered}/{number}")
    raise typer.Exit(code)
