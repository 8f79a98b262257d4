"""dvc.lock and dvc.yaml as the remembering code reads them: what ran with which inputs, and who reads whose outs.

A study (studies/<name>/dvc.yaml) has a dvc.lock of its own. Its stages that write beside the default run's, as
artifacts/merged/<method>, make models that are registered as any others: `every` has them too.

Nothing here starts DVC: both files are YAML. The key of a stage that has not run yet is computed in core/stages.py.
"""

import copy
import hashlib
import json
from functools import lru_cache
from pathlib import Path

from ajuste.core.errors import UsageError
from ajuste.core.params import lookup, parse_yaml, read_yaml
from ajuste.core.stages import definitions, key_of_entry, md5_of

LOCK = Path("dvc.lock")
OF_STUDIES = "artifacts/studies/"


def parse(text: str) -> dict:
    """The stages of a dvc.lock by name."""
    return copy.deepcopy(_parsed(text))


@lru_cache(maxsize=16)
def _parsed(text: str) -> dict:
    # a run asks a hundred times for what takes 0.2 s to parse
    return parse_yaml(text).get("stages", {})


def stages() -> dict:
    """The stages of dvc.lock by name; empty before the first run."""
    return parse(LOCK.read_text(encoding="utf-8")) if LOCK.exists() else {}


def every() -> dict:
    """`stages`, and those of the studies that write below artifacts/, but not in a study's own folder there."""
    found = stages()
    for path in sorted(Path("studies").glob(f"*/{LOCK}")):
        for name, entry in parse(path.read_text(encoding="utf-8")).items():
            if any(out["path"].startswith("artifacts/") and not out["path"].startswith(OF_STUDIES)
                   for out in entry.get("outs", [])):  # fmt: skip
                found.setdefault(name, entry)
    return found


def of_study(study: str) -> set[str]:
    """The stages of a study whose models are registered; none before it has run."""
    path = Path("studies") / study / LOCK
    return set(parse(path.read_text(encoding="utf-8"))) & every().keys() - stages().keys() if path.exists() else set()


def entry(name: str) -> dict:
    """A stage's entry in dvc.lock, or in a study's. Raises UsageError when the stage has not run."""
    found = every().get(name)
    if found is None:
        raise UsageError(f"dvc.lock has no stage `{name}`: it has not run yet; `ajuste run` runs it")
    return found


def stage_key(name: str) -> str:
    """The stage key of what dvc.lock records of a stage."""
    return key_of_entry(entry(name))


def inputs_digest() -> str:
    """sha256 of everything that the default run starts from: commands, params, code and raw data."""
    definitions = _definitions()
    made = {_path_of(out) for entry in definitions.values() for out in entry.get("outs", [])}
    params = read_yaml(Path("params.yaml"))
    inputs: dict = {}
    for name, entry in definitions.items():
        deps = [
            dep for dep in entry.get("deps", []) if not any(dep == out or dep.startswith(f"{out}/") for out in made)
        ]
        inputs[name] = {
            "cmd": entry["cmd"],
            "deps": {dep: md5_of(Path(dep)) for dep in deps if Path(dep).exists()},
            "params": {key: lookup(params, key) for key in entry.get("params", [])},
        }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def parents_of(name: str) -> set[str]:
    """The stages whose outs a stage reads, by dvc.yaml."""
    entries = _definitions()
    deps = entries[name].get("deps", [])
    found = set()
    for other, entry in entries.items():
        for out in map(_path_of, entry.get("outs", [])):
            if other != name and any(dep == out or dep.startswith(f"{out}/") for dep in deps):
                found.add(other)
    return found


def upstream(recorded: dict[str, dict], stage: str) -> dict[str, dict]:
    """The entries of a stage and of all stages that it needs, directly or not, in the order of the lock."""
    makers = {out["path"]: name for name, entry in recorded.items() for out in entry.get("outs", [])}
    found, todo = set(), [stage]
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.add(name)
        for dep in recorded[name].get("deps", []):
            parts = Path(dep["path"])
            todo += [makers[str(path)] for path in (parts, *parts.parents) if str(path) in makers]
    return {name: entry for name, entry in recorded.items() if name in found}


def _definitions() -> dict[str, dict]:
    """The entries of dvc.yaml by stage, read anew only when dvc.yaml or params.yaml has changed."""
    return _filled(*(Path(name).read_text(encoding="utf-8") for name in ("dvc.yaml", "params.yaml")))


@lru_cache(maxsize=1)
def _filled(dvc_yaml: str, params_yaml: str) -> dict[str, dict]:
    return definitions()


def _path_of(out: str | dict) -> str:
    return out if isinstance(out, str) else next(iter(out))
