"""Which registered versions may go, and what goes with them: the rules of `ajuste prune`, and their writes in MLflow.

Never a version with an alias, one that an open move names (ajuste/tracking/registry/promotion.py), an adapter or base
version that a kept version names, one of the newest N of its name, nor one that a present dvc.lock names: the next run
would only register it again. Runs stay with their figures and curves; of runs that no kept
version came from the artefacts go.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ajuste.tracking.comparing import compare
from ajuste.tracking.registry import registry
from ajuste.tracking.registry.moves import INTENT, aliases_of, model_of, versions_of
from ajuste.tracking.registry.tags import unfold
from ajuste.tracking.registry.version import Version
from ajuste.tracking.runs import runs
from ajuste.tracking.runs.store import client, experiment_id, local_path, paged

if TYPE_CHECKING:
    from mlflow.entities import Run

PRUNED = "ajuste.pruned"
OUT = "dvc.out."
PAGE = 5000  # runs of one answer; MLflow gives 50,000 at most


@dataclass
class Kept:
    """What stays: versions by (name, number) with the reason, and the runs that they came from."""

    reasons: dict[tuple[str, str], str] = field(default_factory=dict)
    versions: list[Version] = field(default_factory=list)
    gone: list[Version] = field(default_factory=list)
    run_ids: set[str] = field(default_factory=set)
    every: Runs | None = None


def kept(keep: int, current: set[str]) -> Kept:
    """Decide for every version of every name. `current`: the stage keys of every dvc.lock that is in use."""
    everything, every = registry.everything(), Runs()
    by_key = {(v.name, v.version): v for found in everything.values() for v in found}
    reasons: dict[tuple[str, str], str] = {}
    named = {(v.name + "-adapter", v.tags["adapter_version"]) for v in by_key.values() if "adapter_version" in v.tags}
    for name, found in everything.items():
        moving = open_move(name)
        # an adapter that a served version names stays or goes with that one
        own = [v for v in found if (v.name, v.version) not in named]
        for v in found:
            if v.aliases:
                reasons[v.name, v.version] = f"alias {v.aliases[0]}"
            elif v.version in moving:
                reasons[v.name, v.version] = "an open move names it"
            elif v in own[-keep:]:
                reasons[v.name, v.version] = f"one of the newest {keep}"
            elif v.tags.get("stage_key") in current:
                reasons[v.name, v.version] = "dvc.lock names it"
    todo = list(reasons)
    while todo:
        v = by_key[todo.pop()]
        for key in _names(v):
            if key in by_key and key not in reasons:
                reasons[key] = f"{v.name}/{v.version} names it"
                todo.append(key)
    stay = [v for key, v in by_key.items() if key in reasons]
    return Kept(reasons, stay, [v for key, v in by_key.items() if key not in reasons],
                {run for v in stay for run in every.of(v)}, every)


def _names(v: Version) -> list[tuple[str, str]]:
    """The versions that a version needs: its adapter, and what it was trained on."""
    found = [(f"{v.name}-adapter", v.tags["adapter_version"])] if "adapter_version" in v.tags else []
    base, _, number = v.tags.get("base_version", "").partition("/")
    return found + ([(base, number)] if number else [])


def open_move(name: str) -> set[str]:
    """The version numbers that an interrupted move of the name, or of the served name of an adapter, speaks of."""
    model = model_of(name)
    tag = model.tags.get(INTENT) if model else None
    try:
        return {str(value) for value in json.loads(tag).values()} if tag else set()
    except (ValueError, AttributeError):  # not as we write it: all that could be meant
        return {v.version for v in registry.versions(name)}


class Runs:
    """Every run of the experiment, read once: to ask for those of a thousand versions one by one takes minutes."""

    def __init__(self) -> None:
        self.known = {run.info.run_id: run for run in paged(client().search_runs, [experiment_id()], max_results=PAGE)}
        self._makers: dict[tuple[str, str], Run] = {}
        for run in self.known.values():  # newest first, as a search for one would find it
            for key, md5 in run.data.tags.items():
                if key.startswith(OUT):
                    self._makers.setdefault((key.removeprefix(OUT), md5), run)

    def of(self, v: Version) -> set[str]:
        """The runs that a version came from, and the one that judged it."""
        led = compare.chain(v.run_id, self.get, lambda path, md5: self._makers.get((path, md5)))
        found = {run.info.run_id for run in led}
        return found | ({v.tags["evaluate_run"]} if "evaluate_run" in v.tags else set())

    def get(self, run_id: str) -> Run | None:
        """A run; one that somebody deleted is still asked for by its id. None where it is gone for good."""
        from mlflow.exceptions import MlflowException

        if run_id not in self.known:
            try:
                return client().get_run(run_id)
            except MlflowException:
                return None
        return self.known[run_id]


def prunable_runs(found: Kept, current: set[str]) -> list[Run]:
    """Runs of versions that go which no kept version, and nothing in a dvc.lock, came from."""
    ids = {run for v in found.gone for run in found.every.of(v)} - found.run_ids
    known = [run for one in sorted(ids) if (run := found.every.get(one)) is not None]
    return [run for run in known if run.data.tags.get(runs.KEY) not in current
            and (PRUNED not in run.data.tags or runs.RECORDED in run.data.tags)]


def size_of(uri: str) -> int:
    """Bytes of an artefact folder on this machine; 0 for one that is remote or gone."""
    place = local_path(uri)
    return folder_size(place) if place else 0


def folder_size(place: Path) -> int:
    """Bytes that removing a folder gives back: files that have a second name elsewhere give nothing."""
    files = [file.lstat() for file in place.rglob("*") if file.is_file() and not file.is_symlink()]
    return sum(stat.st_size for stat in files if stat.st_nlink == 1)


def places_of(uri: str) -> tuple[Path, ...]:
    """The folder of an artefact address, if it is on this machine."""
    place = local_path(uri)
    return (place,) if place else ()


def shared_size(places: list[Path]) -> int:
    """Bytes of files that have several names, all of them below these places."""
    names: Counter[tuple[int, int]] = Counter()
    known: dict[tuple[int, int], os.stat_result] = {}
    for place in places:
        for file in place.rglob("*") if place.is_dir() else [place]:
            if file.is_file() and not file.is_symlink() and (stat := file.lstat()).st_nlink > 1:
                names[stat.st_dev, stat.st_ino] += 1
                known[stat.st_dev, stat.st_ino] = stat
    return sum(stat.st_size for inode, stat in known.items() if names[inode] == stat.st_nlink)


def location(v: Version) -> str:
    """Where the files of a version are."""
    return client().get_model_version_download_uri(v.name, v.version)


def remove_version(v: Version) -> bool:
    """Files, logged model, then the version: killed in between, the next call goes on. False if it got an alias."""
    from mlflow.exceptions import MlflowException

    opened = client()
    if is_held(v.name, v.version):
        return False
    remove_artifacts(location(v))
    if model_id := v.tags.get("model_id"):
        try:
            opened.delete_logged_model(model_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    opened.delete_model_version(v.name, v.version)
    return True


def is_held(name: str, version: str) -> bool:
    """Whether an alias or an open move holds a version at this moment."""
    model = model_of(name)
    return model is not None and version in {*aliases_of(model).values(), *open_move(name)}


def clear_run(run_id: str) -> None:
    """The artefacts of a run go; its figures stay. Made again, the run is recorded anew."""
    opened = client()
    run = opened.get_run(run_id)
    remove_artifacts(run.info.artifact_uri)
    opened.set_tag(run_id, PRUNED, "true")
    if runs.RECORDED in run.data.tags:
        opened.delete_tag(run_id, runs.RECORDED)


def orphans(found: Kept) -> list[object]:
    """Logged models of ours that no version has: what a kill between two writes of registering left behind."""
    have = {v.tags.get("model_id") for v in [*found.versions, *found.gone]}
    logged = paged(client().search_logged_models, [experiment_id()])
    return [model for model in logged if "registered" in model.tags and model.model_id not in have]


def has_version(model: object) -> bool:
    """Whether some version was made of a logged model."""
    same = versions_of(model.tags["registered"])
    return any(unfold(version.tags).get("model_id") == model.model_id for version in same)


def remove_artifacts(uri: str) -> None:
    """A folder of the store, local or remote; one that is gone is fine."""
    place = local_path(uri)
    if place:
        shutil.rmtree(place, ignore_errors=True)
        return
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    get_artifact_repository(uri).delete_artifacts()
