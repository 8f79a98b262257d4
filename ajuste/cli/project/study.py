"""`ajuste study NAME`: a comparison that the default run leaves out, studies/<name>/dvc.yaml.

The models that it made beside those of the default run are registered, as methods of a served name.
"""

from pathlib import Path
from typing import Annotated

import typer


def command(name: Annotated[str, typer.Argument(help="The folder under studies/; `list` shows them.")]) -> None:
    """Run a study through DVC: only its stale points are run. Versions that it makes are registered.

    Examples:  ajuste study list   |   ajuste study data-size
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
    if code := dvc.repro_study(f"studies/{name}/dvc.yaml"):
        raise typer.Exit(code)
    if made := lock.of_study(name):
        from ajuste.tracking.registry import registry

        for version in registry.register_all(stages=made):
            typer.echo(f"registered {version.name}/{version.version}: `ajuste gate {version.name}` judges a challenger")
