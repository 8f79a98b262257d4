"""`ajuste sweep`: one training over a grid of parameters, as DVC experiments, ranked by validation."""

from typing import Annotated

import typer


def command(
    stage: Annotated[str, typer.Argument(help="A stage that trains a registered model, for example classify_lora.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", "-S", help="KEY=VALUE,VALUE,...: a key of params.yaml and its values.")
    ] = None,
) -> None:
    """Train every combination, rank them by validation, register the best.

    Each point is a DVC experiment (`dvc exp show` lists it) and an MLflow run below one parent. Test rows rank nothing:
    the best point alone is tested, after it was chosen. Your tree and index stay as they are. Killed? The same command
    again repeats no finished point. Exit code 1 if a point failed.

    Examples:  ajuste sweep classify_lora -S classify.lora.r=4,8,16 -S classify.lora.lr=1e-4,3e-4

    ajuste sweep instruct -S instruct.lr=1e-4,3e-4
    """
    import json

    from rich.console import Console
    from rich.table import Table

    from ajuste.tracking.sweeps import sweep
    from ajuste.tracking.sweeps.points import interval

    console = Console(highlight=False)
    with console.status(f"Sweeping {stage}"):
        done = sweep.sweep(stage, set_ or [], lambda line: console.print(line, markup=False, soft_wrap=True))
    keys = list(done.points[0].params)
    best = "lowest" if done.family.lower else "highest"
    table = Table(title=f"{done.target}: the {best} {done.family.best_name} on validation first", title_justify="left")
    last = [key.rpartition(".")[2] for key in keys]
    headings = last if len(set(last)) == len(keys) else keys
    for heading in ("", *headings, done.family.best_name, "95 % interval", "seconds", "experiment"):
        table.add_column(heading, overflow="fold")
    for rank, point in enumerate(done.points, 1):
        figure = "failed" if point.figure is None else f"{point.figure:.4f}"
        table.add_row(str(rank), *(json.dumps(point.params[key]) for key in keys), figure, interval(point),
                      "" if point.seconds is None else f"{point.seconds:.1f}", point.name)
    console.print(table)
    console.print(sweep.verdict(done), markup=False, soft_wrap=True)
    name = done.registered.partition("/")[0]
    console.print(f"Further: `ajuste compare {name}`; in your params.yaml: `dvc exp apply {done.points[0].name}`",
                  markup=False, soft_wrap=True)
    if any(point.error for point in done.points):
        raise typer.Exit(1)
