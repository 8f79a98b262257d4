"""Which registered versions may go, and what goes with them: the rules of `ajuste prune`, and their writes in MLflow.

Never a version with an alias, one that an open move names (ajuste/tracking/registry/promotion.py), an adapter or base
version that a kept version names, one of the newest N of its name, nor one that a present dvc.lock names: the next run
would only register it again. Runs stay with their figures and curves; of runs that no kept
version came from the artefacts go.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from ajuste.tracking.comparing import compare
from ajuste.tracking.registry import registry
from ajuste.tracking.registry.moves import INTENT
from ajuste.tracking.registry.tags import unfold
from ajuste.tracking.registry.version import Version
from ajuste.tracking.runs import runs
from ajuste.tracking.runs.store import client, experiment_id, local_path

PRUNED = "ajuste.pruned"


@dataclass
class Kept:
    """What stays: versions by (name, number) with the reason, and the runs that they came from."""

    reasons: dict[tuple[str, str], str] = field(default_factory=dict)
    versions: list[Version] = field(default_factory=list)
    gone: list[Version] = field(default_factory=list)
    run_ids: set[str] = field(default_factory=set)


def kept(keep: int, current: set[str]) -> Kept:
    """Decide for every version of every name. `current`: the stage keys of every dvc.lock that is in use."""
    everything = {name: registry.versions(name) for name in registry.names() if _has_versions(name)}
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
                {run for v in stay for run in runs_of(v)})


def _has_versions(name: str) -> bool:
    return bool(client().search_model_versions(f"name='{name}'", max_results=1))


def _names(v: Version) -> list[tuple[str, str]]:
    """The versions that a version needs: its adapter, and what it was trained on."""
    found = [(f"{v.name}-adapter", v.tags["adapter_version"])] if "adapter_version" in v.tags else []
    base, _, number = v.tags.get("base_version", "").partition("/")
    return found + ([(base, number)] if number else [])


def open_move(name: str) -> set[str]:
    """The version numbers that an interrupted move of the name, or of the served name of an adapter, speaks of."""
    tag = client().get_registered_model(name).tags.get(INTENT)
    try:
        return {str(value) for value in json.loads(tag).values()} if tag else set()
    except (ValueError, AttributeError):  # not as we write it: all that could be meant
        return {v.version for v in registry.versions(name)}


def runs_of(v: Version) -> set[str]:
    """The runs that a version came from, and the one that judged it."""
    found = {run.info.run_id for run in compare.chain(v.run_id)}
    return found | ({v.tags["evaluate_run"]} if "evaluate_run" in v.tags else set())


def prunable_runs(found: Kept, current: set[str]) -> list[str]:
    """Runs of versions that go which no kept version, and nothing in a dvc.lock, came from."""
    ids = {run for v in found.gone for run in runs_of(v)} - found.run_ids
    known = {run: tags for run in ids if (tags := _tags_of(run)) is not None}
    return sorted(run for run, tags in known.items()
                  if tags.get(runs.KEY) not in current and (PRUNED not in tags or runs.RECORDED in tags))


def _tags_of(run_id: str) -> dict[str, str] | None:
    from mlflow.exceptions import MlflowException

    try:
        return client().get_run(run_id).data.tags
    except MlflowException:  # deleted for good
        return None


def size_of(uri: str) -> int:
    """Bytes of an artefact folder on this machine; 0 for one that is remote or gone."""
    place = local_path(uri)
    return folder_size(place) if place else 0


def folder_size(place: Path) -> int:
    """Bytes that removing a folder gives back: files that have a second name elsewhere give nothing."""
    files = [file.lstat() for file in place.rglob("*") if file.is_file() and not file.is_symlink()]
    return sum(stat.st_size for stat in files if stat.st_nlink == 1)


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
    aliases = client().get_registered_model(name).aliases.values()
    return version in {str(number) for number in aliases} | open_move(name)


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
    logged = client().search_logged_models([experiment_id()])
    return [model for model in logged if "registered" in model.tags and model.model_id not in have]


def has_version(model: object) -> bool:
    """Whether some version was made of a logged model."""
    same = client().search_model_versions(f"name='{model.tags['registered']}'")
    return any(unfold(version.tags).get("model_id") == model.model_id for version in same)


def remove_artifacts(uri: str) -> None:
    """A folder of the store, local or remote; one that is gone is fine."""
    place = local_path(uri)
    if place:
        shutil.rmtree(place, ignore_errors=True)
        return
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    get_artifact_repository(uri).delete_artifacts()
