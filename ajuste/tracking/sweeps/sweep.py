"""A training over a grid of parameters, as DVC experiments: ranked by validation, the best registered.

    sweep("classify_lora", ["classify.lora.r=4,8", "classify.lora.lr=1e-4,3e-4"])

Each point (sweeps/points.py) is `dvc exp run` of the stage in a clone of its own, <home>/.sweeps/<stage>/tree
(sweeps/tree.py): the user's tree, index and data are never touched. What comes back are the experiments' commits
(refs/exps, which `dvc exp show` lists and `git gc` keeps), so that `ajuste reproduce` finds the parameters of a
registered point, and MLflow runs below one parent a sweep.

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
from ajuste.tracking.project import git, lock, raw_data
from ajuste.tracking.registry import registry
from ajuste.tracking.registry.families.family import Family
from ajuste.tracking.runs import facts, runs
from ajuste.tracking.runs.store import client, experiment_id
from ajuste.tracking.sweeps import grid as sweeps_grid
from ajuste.tracking.sweeps.points import Point, interval, ranked, run_experiment, told, train
from ajuste.tracking.sweeps.tree import Tree

TAG = "ajuste.sweep"
SHORT = 10  # characters of a digest in a name


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
    here, place = Path.cwd(), home() / ".sweeps" / target
    tree = Tree(place, here, git.head())
    digest = _digest([tree.commit, target, wanted])
    with held(place / "lock", f"a sweep of `{target}` is already running"):
        tree.clone()
        try:
            os.chdir(tree.path)
            parent = _parent(target, digest, grid)
            points = [Point(params, f"{target.replace('_', '-')}-{_digest([tree.commit, params])}")
                      for params in wanted]
            for index, point in enumerate(points, 1):
                train(point, target, family, tree, parent, digest)
                say(f"{index} of {len(points)}  {sweeps_grid.said(point.params)}  {told(point, family)}")
            done = Sweep(target, family, ranked(points, family), parent)
            if not [point for point in points if point.figure is not None]:
                raise DataError(f"every point of the sweep failed; the last: {points[-1].error}")
            _register(done, tree, say)
            _describe(done)
        finally:
            os.chdir(here)
        shutil.rmtree(tree.path)
        shutil.rmtree(place / ".checkpoints", ignore_errors=True)
    return done


# --- the best ---------------------------------------------------------------------------------------------------------


def _register(done: Sweep, tree: Tree, say: Callable[[str], None]) -> None:
    """Merge, test and register the best point; `challenger` goes by the rule of all versions."""
    best = done.points[0]
    after = sweeps_grid.downstream(done.target, {done.family.merge, done.family.evaluate})
    if after:
        say(f"the best: {sweeps_grid.said(best.params)}; now {', '.join(after)}")
        run_experiment(best, tree, f"{best.name}-best", [done.target, *after])
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
    holder = registry.by_alias(mine[-1].name, "challenger")
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


def _digest(what: object) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:SHORT]
