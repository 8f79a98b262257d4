"""The points of a sweep: one combination of parameters each, its experiment, its MLflow run, what validation says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ajuste.tracking.project import lock
from ajuste.tracking.registry.families.family import Family
from ajuste.tracking.runs import facts, runs
from ajuste.tracking.runs.store import client
from ajuste.tracking.sweeps import grid
from ajuste.tracking.sweeps.tree import Tree

MEMBER = "ajuste.in_sweep"


@dataclass
class Point:
    """One combination of parameters. `figure` is what ranks it, on validation; None where the point failed."""

    params: dict[str, object]
    name: str  # of the DVC experiment
    action: str = ""  # ran, restored (from DVC's run cache), unchanged
    figure: float | None = None
    low: float | None = None
    high: float | None = None
    trainable: int = 0
    seconds: float | None = None
    run_id: str | None = None
    commit: str = ""
    error: str = ""


def ranked(points: list[Point], family: Family) -> list[Point]:
    """The best on validation first; equals by fewer trained parameters, then in the order of the grid."""
    def order(point: Point) -> tuple:
        if point.figure is None or point.figure != point.figure:  # a nan is no figure
            return True, 0.0, 0
        return False, point.figure if family.lower else -point.figure, point.trainable

    return sorted(points, key=order)


def train(point: Point, target: str, family: Family, tree: Tree, parent: str, digest: str) -> None:
    """The experiment of a point, its MLflow run, which belongs to the sweep `digest`, and its figure with interval."""
    run_experiment(point, tree, point.name, [target])
    if point.error:
        return
    point.run_id = runs.record(target, parent)
    folder = Path(lock.entry(target)["outs"][0]["path"])
    card = facts.read_json(folder / "ajuste.json")
    point.figure = card["validation"].get(family.best)
    point.trainable = card["parameters"]["trainable"]
    point.seconds = client().get_run(point.run_id).data.metrics.get("cost/seconds")
    point.low, point.high = _interval(point, family, folder, card)
    run = client().get_run(point.run_id)
    member = run.data.tags.get(MEMBER, "").split()
    if digest not in member:
        client().set_tag(point.run_id, MEMBER, " ".join([*member, digest]))
    if run.data.tags.get("mlflow.parentRunId") == parent:  # MLflow's compare page heads its columns with the names
        short = {key.rpartition(".")[2]: value for key, value in point.params.items()}
        client().update_run(point.run_id, name=f"{target} {grid.said(short)}")


def run_experiment(point: Point, tree: Tree, name: str, targets: list[str]) -> None:
    """Run the point's parameters as experiment `name`; its commit, or its error, stands in the point then."""
    made = tree.experiment(name, point.params, targets)
    point.error = made.error
    if not made.error:
        point.commit, point.action = made.commit, point.action or made.action


def _interval(point: Point, family: Family, folder: Path, card: dict) -> tuple[float | None, float | None]:
    """A 95 % interval of the figure on validation rows, which the run keeps; (None, None) where there is none."""
    from mlflow.entities import Metric

    run = client().get_run(point.run_id)
    names = [f"validation/{family.best}_{bound}" for bound in ("low", "high")]
    if all(name in run.data.metrics for name in names):
        low, high = (run.data.metrics[name] for name in names)
        return low, high
    low, high = family.validation_interval(folder, card)
    if high is not None:
        bounds = zip(names, (low, high), strict=True)
        runs.log(point.run_id, metrics=[Metric(name, value, run.info.start_time, 0) for name, value in bounds])
    return low, high


def interval(point: Point) -> str:
    """0.7812 to 0.8241; "at least 0.1" where only the lower bound is known; "" where none is."""
    if point.low is None:
        return ""
    return f"at least {point.low:.4f}" if point.high is None else f"{point.low:.4f} to {point.high:.4f}"


def told(point: Point, family: Family) -> str:
    """What became of a point, for the line that is printed when it is done."""
    if point.error:
        return f"failed: {point.error}"
    seconds = f" {point.seconds:.0f} s" if point.seconds and point.action == "ran" else ""
    return f"{point.action}{seconds}  validation {family.best_name} {point.figure:.4f}"
