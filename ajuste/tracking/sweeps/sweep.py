"""A training over a grid of parameters, as DVC experiments: ranked by validation, the best registered.

    sweep("classify_lora", ["classify.lora.r=4,8", "classify.lora.lr=1e-4,3e-4"])

Each point is `dvc exp run` of the stage. It works in a clone of its own, <home>/.sweeps/<stage>/tree, with the shared
DVC cache, because `dvc exp run` stashes and resets the tree that it stands in: the user's tree, index and data are
never touched. What comes back are the experiments' commits (refs/exps, which `dvc exp show` lists and `git gc` keeps),
so that `ajuste reproduce` finds the parameters of a registered point, and MLflow runs below one parent a sweep.

Only validation ranks: test rows are looked at for the best point alone, after it was chosen. It runs on through merge
and evaluation and is registered; ajuste/tracking/registry/rank.py decides whether it is `challenger`.

A killed sweep is given again with the same words: DVC's run cache restores each finished point, the interrupted one
goes on from its checkpoint, and MLflow finds what it has by stage key.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ajuste.core.errors import DataError, UsageError
from ajuste.core.home import home
from ajuste.core.locks import held
from ajuste.core.params import lookup, read_yaml
from ajuste.tracking.project import dvc, git, lock, raw_data
from ajuste.tracking.registry import registry
from ajuste.tracking.registry.families.family import Family
from ajuste.tracking.runs import facts, runs
from ajuste.tracking.runs.store import client, experiment_id
from ajuste.tracking.sweeps import grid as sweeps_grid

TAG, MEMBER = "ajuste.sweep", "ajuste.in_sweep"
SHORT = 10  # characters of a digest in a name


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


@dataclass
class Sweep:
    """What came out. `points` are ranked, failed ones last."""

    target: str
    family: Family
    points: list[Point]
    parent: str
    registered: str = ""  # NAME/VERSION of the best point
    is_challenger: bool = False
    challenger: str = ""  # what holds the alias now: version and its figure
    new: list[str] = field(default_factory=list)


def sweep(target: str, words: list[str], say: Callable[[str], None] = lambda line: None) -> Sweep:
    """Run every point, rank them by validation, register the best. `say` is told a line a point.

    Raises UsageError, before anything runs, for a wrong stage, key or value, for uncommitted changes and while another
    sweep of the stage is under way; DataError if every point failed, or the best cannot be registered.
    """
    family = sweeps_grid.swept_family(target)
    grid = sweeps_grid.parse(words)
    wanted = sweeps_grid.points(target, grid)
    if changed := git.changed_files():
        raise UsageError(f"an experiment begins at a commit: commit {', '.join(changed[:5])} first")
    raw_data.check()
    commit = git.head()
    digest = _digest([commit, target, wanted])
    here, place = Path.cwd(), home() / ".sweeps" / target
    with held(place / "lock", f"a sweep of `{target}` is already running"):
        tree = _clone(place, commit)
        try:
            os.chdir(tree)
            parent = _parent(target, digest, grid)
            points = [Point(params, f"{target.replace('_', '-')}-{_digest([commit, params])}") for params in wanted]
            for index, point in enumerate(points, 1):
                _run(point, target, family, commit, parent, digest, place, here)
                say(f"{index} of {len(points)}  {sweeps_grid.said(point.params)}  {_told(point, family)}")
            done = Sweep(target, family, ranked(points, family), parent)
            if not [point for point in points if point.figure is not None]:
                raise DataError(f"every point of the sweep failed; the last: {points[-1].error}")
            _register(done, commit, place, here, say)
            _describe(done)
        finally:
            os.chdir(here)
        shutil.rmtree(place / "tree")
        shutil.rmtree(place / ".checkpoints", ignore_errors=True)
    return done


def ranked(points: list[Point], family: Family) -> list[Point]:
    """The best on validation first; equals by fewer trained parameters, then in the order of the grid."""
    def order(point: Point) -> tuple:
        if point.figure is None or point.figure != point.figure:  # a nan is no figure
            return True, 0.0, 0
        return False, point.figure if family.lower else -point.figure, point.trainable

    return sorted(points, key=order)


# --- one point --------------------------------------------------------------------------------------------------------


def _run(point: Point, target: str, family: Family, commit: str, parent: str, digest: str, place: Path,
         here: Path) -> None:
    """The experiment of a point, its MLflow run, and what validation says of it."""
    _experiment(point, point.name, [target], commit, place, here)
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
        client().update_run(point.run_id, name=f"{target} {sweeps_grid.said(short)}")


def _experiment(point: Point, name: str, targets: list[str], commit: str, place: Path, here: Path) -> None:
    """`dvc exp run` on the baseline; then the tree stands at the experiment's commit, which the user's clone gets."""
    _reset(here)
    outcome = dvc.experiment(Path.cwd(), place, name, point.params, targets, place / f"{name}.log")
    if outcome.code != 0:
        stage = next((s for s in targets if _state(s).get("error")), targets[0])
        reason = (_state(stage).get("error") or {}).get("message") or dvc.last_error(outcome.output)
        point.error = f"{reason} (all of it: {place / f'{name}.log'})"
        return
    params = read_yaml(Path("params.yaml"))
    for key, value in point.params.items():
        if lookup(params, key) != value:
            raise DataError(f"dvc exp run set `{key}` to {lookup(params, key)!r}, not to {value!r}: write it otherwise")
    reference = dvc.experiment_ref(commit, name)
    # a checkout of what stands there: code and params are those of a commit, so the run is not "dirty"
    git.run("checkout", "--quiet", "--force", "--detach", reference)
    point.commit, point.action = git.head(), point.action or outcome.action
    git.run("-C", str(here), "fetch", "--quiet", "--no-write-fetch-head", "--no-tags", str(Path.cwd()),
                 f"+{reference}:{reference}")


def _reset(here: Path) -> None:
    """Back to the baseline, with the lock of the user's last run: what is up to date there is so here."""
    git.run("checkout", "--quiet", "--force", "sweep")
    if (here / lock.LOCK).exists():
        shutil.copyfile(here / lock.LOCK, lock.LOCK)


def _state(stage: str) -> dict:
    return facts.read_json(Path(".state") / f"{stage}.json")


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


# --- the best ---------------------------------------------------------------------------------------------------------


def _register(done: Sweep, commit: str, place: Path, here: Path, say: Callable[[str], None]) -> None:
    """Merge, test and register the best point; `challenger` goes by the rule of all versions."""
    best = done.points[0]
    after = sweeps_grid.downstream(done.target, {done.family.merge, done.family.evaluate})
    if after:
        say(f"the best: {sweeps_grid.said(best.params)}; now {', '.join(after)}")
        _experiment(best, f"{best.name}-best", [done.target, *after], commit, place, here)
        if best.error:
            raise DataError(f"the best point could not be merged and tested: {best.error}")
        for stage in after:
            runs.record(stage, done.parent)
    done.new = [f"{version.name}/{version.version}" for version in registry.register_all(done.parent)]
    keys = {lock.stage_key(stage) for stage in (done.target, *after)}
    mine = [version for name in registry.names() if not name.endswith("-adapter")
            for version in registry.versions(name) if version.tags.get("stage_key") in keys]
    if not mine:
        raise DataError(f"nothing of the best point was registered: {done.target} leaves no model that is served")
    done.registered = f"{mine[-1].name}/{mine[-1].version}"
    done.is_challenger = "challenger" in mine[-1].aliases
    holder = next((v for v in registry.versions(mine[-1].name) if "challenger" in v.aliases), None)
    if holder is not None:
        figure = holder.tags.get(f"validation.{done.family.best}")
        done.challenger = f"version {holder.version}" + (f" ({done.family.best_name} {float(figure):.4f})"
                                                         if figure else "")


# --- MLflow's parent run ----------------------------------------------------------------------------------------------


def _parent(target: str, digest: str, grid: dict[str, list]) -> str:
    """The one run of this sweep: same commit, stage and grid."""
    tags = {"ajuste.stage": f"sweep {target}", **facts.commit()}
    found = runs.tagged(TAG, digest, f"sweep {target} {digest}", tags)
    runs.log(found, {f"grid.{key}": ", ".join(map(json.dumps, values)) for key, values in grid.items()})
    return found


def _describe(done: Sweep) -> None:
    """The table on the parent's page, with a link to the run of each point; its metrics are those of the best."""
    from mlflow.entities import Metric

    keys = list(done.points[0].params)
    lines = [f"Sweep of **{done.target}**, ranked by {done.family.best_name} on validation "
             f"({'lower' if done.family.lower else 'higher'} is better). To see all of it in one picture: select the "
             "runs below this one and press *Compare*.", "",
             f"| rank | {' | '.join(keys)} | {done.family.best_name} | 95 % interval | seconds | run |",
             f"|---|{'---|' * (len(keys) + 4)}"]
    for rank, point in enumerate(done.points, 1):
        values = " | ".join(json.dumps(point.params[key]) for key in keys)
        figure = "failed" if point.figure is None else f"{point.figure:.4f}"
        run = f"[{point.name}](#/experiments/{experiment_id()}/runs/{point.run_id})" if point.run_id else point.name
        seconds = "" if point.seconds is None else f"{point.seconds:.1f}"
        lines.append(f"| {rank} | {values} | {figure} | {interval(point)} | {seconds} | {run} |")
    lines += ["", verdict(done)]
    best, start = done.points[0], client().get_run(done.parent).info.start_time
    runs.log(done.parent, tags={"mlflow.note.content": "\n".join(lines)},
             metrics=[Metric(f"validation/{done.family.best}", best.figure, start, 0)])
    client().set_terminated(done.parent, "FINISHED")


def verdict(done: Sweep) -> str:
    """What became of the best point, in one sentence."""
    figure = f"{done.family.best_name} {done.points[0].figure:.4f} on validation"
    if done.is_challenger:
        return f"The best point is {done.registered}, {figure}: it is challenger."
    return (f"The best point is {done.registered}, {figure}: not better than the challenger, {done.challenger}, "
            "which stays.")


def interval(point: Point) -> str:
    """0.7812 to 0.8241; "at least 0.1" where only the lower bound is known; "" where none is."""
    if point.low is None:
        return ""
    return f"at least {point.low:.4f}" if point.high is None else f"{point.low:.4f} to {point.high:.4f}"


def _told(point: Point, family: Family) -> str:
    if point.error:
        return f"failed: {point.error}"
    seconds = f" {point.seconds:.0f} s" if point.seconds and point.action == "ran" else ""
    return f"{point.action}{seconds}  validation {family.best_name} {point.figure:.4f}"


# --- the place --------------------------------------------------------------------------------------------------------


def _clone(place: Path, commit: str) -> Path:
    """A fresh clone at the commit, with the user's data by digest, the shared cache and assets."""
    tree, root = place / "tree", git.run("rev-parse", "--show-toplevel").strip()
    shutil.rmtree(tree, ignore_errors=True)  # of a sweep that was killed: its points are in the cache
    cache = Path(dvc.run("cache", "dir").stdout.strip()).resolve()
    git.run("clone", "--quiet", "--no-checkout", root, str(tree))
    git.run("-C", str(tree), "checkout", "--quiet", "-b", "sweep", commit)
    for key, value in (("user.name", "Ajuste"), ("user.email", "ajuste@localhost")):
        git.run("-C", str(tree), "config", key, value)
    (place / ".state").mkdir(exist_ok=True)
    (tree / ".state").symlink_to(place / ".state")
    if (home() / ".assets").exists():
        (tree / ".assets").symlink_to(home() / ".assets")
    with (tree / ".git" / "info" / "exclude").open("a") as file:
        file.write(".state\n.assets\n")
    for args in (["cache", "dir", "--quiet", "--local", str(cache)], ["checkout", "--quiet", "--force", "data.dvc"]):
        done = dvc.run("--cd", str(tree), *args)
        if done.returncode != 0:
            raise DataError(f"the data of {commit[:8]} is not in the DVC cache: `ajuste data pull` brings it "
                            f"({dvc.last_error(done.stderr)})")
    return tree


def _digest(what: object) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:SHORT]
