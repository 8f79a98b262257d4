"""What may be thrown away, how many bytes that is, and the throwing away.

    versions      registered versions beyond the newest N of each name (rules:
                  ajuste/tracking/pruning/registry_plan.py), with their files, and the artefacts of runs that no kept
                  version came from
    cache         files of DVC's cache that neither the workspace, a branch, a tag, a kept worktree, the data of a kept
                  version nor the dvc.lock that its run recorded names: `ajuste reproduce` of every kept version goes on
    remote        the same in the default DVC remote, if asked: other clones may share it, and their branches are not
                  known here
    refs          git references of deployed runs and of experiments (ajuste/tracking/pruning/refs_plan.py)
    worktrees     <home>/.prefect/worktrees, unused for a week
    checkpoints   of this home and of the deployments': of stages that have ended and are recorded, or of inputs that
                  nothing has any more and a week old

`plan(keep)` decides and writes nothing. `carry_out(plan)` does it, and can be killed at any time: what is left is in
the next plan. While a stage, a sweep or a move runs nothing is thrown away.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from ajuste.core.checkpoints import record_of
from ajuste.core.errors import UsageError
from ajuste.core.home import home
from ajuste.core.locks import owner
from ajuste.core.params import parse_yaml
from ajuste.core.stages import key_of_entry, stage_key, stage_names
from ajuste.tracking.project import dvc, git, lock
from ajuste.tracking.pruning import refs_plan
from ajuste.tracking.pruning import registry_plan as rules
from ajuste.tracking.registry import promotion
from ajuste.tracking.runs.store import client, exists, local_path, locked

if TYPE_CHECKING:
    from mlflow.entities import Run

WEEK = 7 * 24 * 3600  # seconds


@dataclass
class Item:
    """Something that goes: what it is, why, and how many bytes that gives back."""

    kind: str  # version, run, model, ref, worktree, checkpoint, sweep, cache, remote
    what: str
    why: str
    size: int
    remove: Callable[[], object] = field(repr=False)
    places: tuple[Path, ...] = ()  # of its files, where they may have other names


@dataclass
class Plan:
    """`items` in the order of their removal. `kept`: why each version that could be meant stays.

    shared: bytes of files that several items name, as a version and the cache, and that go with the last of them. What
    something that stays names too gives nothing back.
    """

    items: list[Item]
    kept: dict[tuple[str, str], str]
    shared: int = 0

    @property
    def size(self) -> int:
        """Bytes of all items."""
        return sum(item.size for item in self.items) + self.shared


def plan(keep: int, remote: bool = False) -> Plan:
    """What goes if the newest `keep` versions of each name stay. Writes nothing. remote: of the DVC remote too.

    Raises UsageError for `keep` below 1, while a stage or a sweep runs, and if it cannot tell what the remote needs.
    """
    if keep < 1:
        raise UsageError(f"--keep must be at least 1 (got {keep})")
    _check_quiet()
    items, found = [], rules.Kept()
    sweeping = any((home() / ".sweeps").glob("*/tree"))  # killed: it is to find its points again
    places, idle = _worktrees()
    current = {key for place in (Path(), home(), *places) for key in _keys_of_lock(place / "dvc.lock")}
    if exists():
        found = rules.kept(keep, current)
        items += [Item("version", f"{v.name}/{v.version}", f"beyond the newest {keep}, no alias, nothing kept names it",
                       rules.size_of(rules.location(v)), lambda v=v: rules.remove_version(v),
                       rules.places_of(rules.location(v))) for v in found.gone]
        items += [Item("model", model.model_id, "registered by no version", rules.size_of(model.artifact_location),
                       lambda model=model: _remove_model(model), rules.places_of(model.artifact_location))
                  for model in rules.orphans(found)]
        for run in rules.prunable_runs(found, current):
            items.append(Item("run", run.info.run_id, "no kept version came from it; its figures stay",
                              rules.size_of(run.info.artifact_uri), lambda run=run: rules.clear_run(run.info.run_id)))
        # a run belongs to versions: once these are gone nothing leads to it, so it goes before them
        items.sort(key=lambda item: item.kind != "run")
        items += [Item("ref", ref.name, why, 0, lambda ref=ref: git.delete_ref(ref))
                  for ref, why in refs_plan.unneeded(found.versions, _locks(places), sweeping)]
    items += [Item("worktree", str(place), "unused for a week", rules.folder_size(place),
                   lambda place=place: _remove_worktree(place)) for place in idle]
    items += _sweeps() + _checkpoints(current)
    pins = _pins(found)
    projects = [place for place in (home(), *places) if (place / ".dvc").is_dir() and place != Path.cwd()]
    unused = dvc.unused_cache(pins, projects, sweeping, remove=False)
    if unused:
        size = sum(path.stat().st_size for path in unused if path.exists() and path.stat().st_nlink == 1)
        items.append(Item("cache", f"{len(unused)} files", "named by nothing that is kept", size,
                          lambda: dvc.unused_cache(pins, projects, sweeping, remove=True)))
    if remote and (left := dvc.unused_remote(pins, projects, sweeping, remove=False)):
        size = sum(Path(path).stat().st_size for path in left if Path(path).is_file())
        items.append(Item("remote", f"{len(left)} files", "named by nothing that is kept here", size,
                          lambda: dvc.unused_remote(pins, projects, sweeping, remove=True)))
    places = [place for item in items for place in item.places]
    return Plan(items, found.reasons, rules.shared_size([*places, *unused]))


def carry_out(made: Plan, say: Callable[[Item], None] = lambda item: None) -> int:
    """Remove the items; returns the bytes. Raises UsageError if a version got an alias since the plan was made."""
    freed = 0
    with locked(promotion.LOCK):  # no alias moves meanwhile
        for item in made.items:
            if item.kind == "version" and rules.is_held(*item.what.split("/")):
                raise UsageError(f"{item.what} got an alias since this was planned: look at the plan again")
        for item in made.items:
            _check_quiet()
            if item.remove() is not False:
                freed += item.size
                say(item)
    return freed + made.shared


def _check_quiet() -> None:
    """Refuse while a stage or a sweep runs: its results are not in any dvc.lock yet."""
    locks = [*(path for place in _homes() for path in (place / ".checkpoints").glob("*.lock")),
             *(home() / ".sweeps").glob("*/lock"), *(home() / ".sweeps").glob("*/.checkpoints/*.lock")]
    for path in locks:
        if running := owner(path):
            name = path.parent.name if path.name == "lock" else path.stem
            raise UsageError(f"`{name}` is running as process {running}: prune when it has ended")


# --- MLflow -----------------------------------------------------------------------------------------------------------


def _remove_model(model: object) -> bool:
    with locked():  # a model and then its version are made under this lock, so none is between the two now
        if rules.has_version(model):
            return False
        rules.remove_artifacts(model.artifact_location)
        client().delete_logged_model(model.model_id)
    return True


def _pins(found: rules.Kept) -> set[str]:
    """What `reproduce` of the kept versions reads: their raw data, and all that the recorded locks name, by hash."""
    pins = {v.tags["data"] for v in found.versions if v.tags.get("data")}
    for text in {_recorded_lock(run) for v in found.versions if v.run_id and (run := found.every.get(v.run_id))}:
        for entry in parse_yaml(text).get("stages", {}).values():  # versions of one run have one lock
            for item in [*entry.get("deps", []), *entry.get("outs", [])]:
                if item.get("md5") and item["path"].startswith(("artifacts/", "data/")):
                    pins.add(item["md5"])
    return pins


def _recorded_lock(run: Run) -> str:
    """The dvc.lock of a run; "" of a run whose files somebody deleted, and of one of an older kind."""
    from mlflow.exceptions import MlflowException

    place = local_path(run.info.artifact_uri)
    try:
        if place:
            return (place / "dvc.lock").read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:
            return Path(client().download_artifacts(run.info.run_id, "dvc.lock", folder)).read_text(encoding="utf-8")
    except (MlflowException, OSError):
        return ""


# --- folders of the home ----------------------------------------------------------------------------------------------


def _homes() -> list[Path]:
    """This home and those of the deployments (infra/worktree.py), whose checkpoints are their own."""
    return [home(), *sorted((home() / ".prefect" / "homes").glob("*"))]


def _locks(places: list[Path]) -> set[str]:
    """The dvc.lock of every folder that is in use."""
    files = [place / "dvc.lock" for place in (Path(), home(), *places)]
    return {file.read_text(encoding="utf-8", errors="replace") for file in files if file.exists()}


def _worktrees() -> tuple[list[Path], list[Path]]:
    """(those that stay, those that may go) of <home>/.prefect/worktrees; all others of git stay."""
    root = home() / ".prefect" / "worktrees"
    of_git = git.worktrees()
    mine = [*(place for place in of_git if place.is_relative_to(root)),
            *(place for place in root.glob("*") if place.is_dir() and place not in of_git)]
    used = set(_working_folders())
    idle = [place for place in mine if _age(place) > WEEK
            and not any(folder == place or folder.is_relative_to(place) for folder in used)]
    stay = [place for place in [*of_git, *mine] if place not in idle and place.is_dir()]
    return list(dict.fromkeys(stay)), idle


def _working_folders() -> Iterator[Path]:
    for process in psutil.process_iter():
        try:
            yield Path(process.cwd())
        except (psutil.Error, OSError):
            continue


def _age(place: Path) -> float:
    """Seconds since anything at the top of a folder was written."""
    times = [path.lstat().st_mtime for path in (place, *place.glob("*"), *place.glob(".dvc/tmp/*"))]
    return time.time() - max(times)


def _remove_worktree(place: Path) -> None:
    if place in git.worktrees():
        git.remove_worktree(place)
    shutil.rmtree(place, ignore_errors=True)


def _sweeps() -> list[Item]:
    """What a killed sweep left, a week old; its finished points are in DVC's run cache."""
    return [Item("sweep", str(place), "killed a week ago", rules.folder_size(place),
                 lambda place=place: shutil.rmtree(place))
            for place in sorted((home() / ".sweeps").glob("*")) if place.is_dir() and _age(place) > WEEK]


def _checkpoints(current: set[str]) -> list[Item]:
    """Checkpoints that no run will go on from: recorded stages, and inputs that nothing has any more, a week old."""
    from ajuste.tracking.runs import runs

    wanted = current | _current_keys()
    items = []
    for place in (found for folder in _homes() for found in sorted((folder / ".checkpoints").glob("*"))):
        if not place.is_dir():
            continue
        if exists() and runs.is_recorded(place.name):
            why = "its stage ended and is recorded"
        elif place.name in current and record_of(place) is not None:
            why = "its stage ended and dvc.lock has its result"
        elif place.name not in wanted and _age(place) > WEEK:
            why = "of inputs that nothing has any more, a week old"
        else:
            continue
        items.append(Item("checkpoint", place.name, why, rules.folder_size(place),
                          lambda place=place: shutil.rmtree(place)))
    return items


def _current_keys() -> set[str]:
    """The stage keys of the files as they stand now."""
    keys = set()
    for name in stage_names():
        try:
            keys.add(stage_key(name))
        except UsageError:  # something that it reads is not made yet
            continue
    return keys


def _keys_of_lock(path: Path) -> set[str]:
    if not path.exists():
        return set()
    return {key_of_entry(entry) for entry in lock.parse(path.read_text(encoding="utf-8")).values()}
