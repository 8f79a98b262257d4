"""Is params.yaml right, for all stages that dvc.yaml names? Asked before anything runs, so it must answer at once.

Importing the modules of all stages to ask for their configs takes 20 s. So what can be said without them is said
first, and of the rest only that is typed which is not known to be right:

    names      of sections, and of plain keys of a verb: those that dvc.yaml's stages read
    compute    its own type, as launch
    a section  as dvc.lock records it, of a stage whose modules in tasks/ are those of the lock, is right: the run that
               recorded it has typed it. Of any other the keys are compared with the source of its config, and then it
               is typed, which imports the module of its stage
"""

import ast
import importlib
import re
from functools import cache
from pathlib import Path

from ajuste.core.errors import UsageError
from ajuste.core.launch.where import launch_of
from ajuste.core.params import Compute, Config, lookup, read_yaml, section, typed, unknown_key
from ajuste.core.stage import asking
from ajuste.core.stages import md5_of, module_of, split_name


def config_type_of(name: str) -> type[Config]:
    """The config of a stage: what its main() gives to `start`."""
    module = importlib.import_module(module_of(name))
    return asking(module.main)


def check_params() -> None:
    """Read every section that dvc.yaml's stages use. Raises UsageError for the first fault."""
    params, stages = read_yaml(Path("params.yaml")), read_yaml(Path("dvc.yaml"))["stages"]
    _check_names(params, stages)
    typed(Compute, params.get("compute") or {}, "compute")
    launch_of(params)
    locked = _locked()
    sections = {name: section(params, *split_name(name)) for name in stages}
    doubtful = [name for name, entry in stages.items() if not _was_typed(entry, params, locked.get(name, {}))]
    for name in doubtful:
        known, where = keys_of(name, stages[name]), _where(name)
        if known is not None and (unknown := sorted(sections[name].keys() - known)):
            raise unknown_key(f"{where}.{unknown[0]}", known)
    for name in doubtful:
        typed(config_type_of(name), sections[name], _where(name)).check()


def _where(name: str) -> str:
    """The section of a stage: `verb.variant`, or `verb`."""
    return ".".join(filter(None, split_name(name)))


def _check_names(params: dict, stages: dict[str, dict]) -> None:
    """Sections, and plain keys of a verb, that no stage reads."""
    names = [split_name(name) for name in stages]
    verbs = {verb for verb, _ in names}
    if unknown := sorted(params.keys() - {"compute", "launch"} - verbs):
        known = ", ".join(sorted({"compute", "launch"} | verbs))
        raise UsageError(f"params.yaml: unknown section `{unknown[0]}`: known sections are {known}")
    read = {key for entry in stages.values() for key in entry.get("params", [])}
    for verb in sorted(verbs & params.keys()):
        for key, value in params[verb].items() if isinstance(params[verb], dict) else ():
            if isinstance(value, dict) and (verb, key) not in names:
                raise UsageError(f"params.yaml: unknown section `{verb}.{key}`: dvc.yaml has no stage `{verb}_{key}`")
            if verb not in read and f"{verb}.{key}" not in read:
                known = [name.removeprefix(f"{verb}.") for name in read if name.startswith(f"{verb}.")]
                raise unknown_key(f"{verb}.{key}", known)


def _locked() -> dict[str, dict]:
    """The stages of dvc.lock; none where there is no lock, or only half of one, which a kill can leave."""
    try:
        return read_yaml(Path("dvc.lock")).get("stages") or {}
    except (UsageError, AttributeError):
        return {}


def _was_typed(entry: dict, params: dict, locked: dict) -> bool:
    """Whether the stage has run on these params with these modules, as far as they can say what its config is.

    A stage that reads code alone brings its input from outside, where it may be gone: its out must be here.
    """
    recorded = _params_of(locked)
    hashes = {dep["path"]: dep.get("md5") for dep in locked.get("deps", [])}
    modules = [dep for dep in entry.get("deps", []) if dep.startswith("tasks/")]
    try:
        same = all(recorded[key] == lookup(params, key) for key in entry.get("params", []) if key != "compute")
    except (KeyError, UsageError):
        return False
    if all(dep.endswith(".py") for dep in entry.get("deps", [])):
        same = same and all(Path(out).exists() for out in entry.get("outs", []))
    same = same and bool(locked)
    return same and all(Path(dep).is_file() and hashes.get(dep) == md5_of(Path(dep)) for dep in modules)


def _params_of(locked: dict) -> dict:
    """The params of a lock entry by dotted key."""
    return {key: value for values in locked.get("params", {}).values() for key, value in values.items()}


# --- the keys of a config, from its source ----------------------------------------------------------------------------


def keys_of(name: str, entry: dict) -> set[str] | None:
    """The keys that a stage's config has, without importing it; None where its source does not say it plainly.

    The module gives a class to `start("<stage>", TheConfig)`; its fields are what it and its bases annotate.
    """
    files = [Path(dep) for dep in entry.get("deps", []) if dep.endswith(".py") and Path(dep).is_file()]
    classes = {found.name: found for file in files for found in _classes(file)}
    started = [call for file in files for call in re.findall(rf'start\("{name}", (\w+)[,)]', _text(file))]
    keys, todo = set(), started[:1] or [""]
    while todo:
        if (known := classes.get(todo.pop())) is None:
            return None
        keys |= {node.target.id for node in known.body if isinstance(node, ast.AnnAssign)}
        bases = (ast.unparse(base).rpartition(".")[2] for base in known.bases)
        todo += [base for base in bases if base != Config.__name__]
    return keys


@cache
def _classes(file: Path) -> list[ast.ClassDef]:
    return [node for node in ast.parse(_text(file)).body if isinstance(node, ast.ClassDef)]


@cache
def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")
