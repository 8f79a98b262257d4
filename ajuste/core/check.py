"""Is params.yaml right, for all stages that dvc.yaml names? Asked before anything runs, so it must answer at once.

Importing the modules of all stages to ask for their configs takes 20 s. So what can be said without them is said
first, and of the rest only that is typed which is not known to be right:

    names      sections, and plain keys of a verb, that no stage of dvc.yaml reads         no import
    compute    its own type                                                                 no import
    a section  as dvc.lock records it, of a stage whose modules in tasks/ are those of the lock: the run that recorded
               it has typed it                                                              no import
               any other: those with keys that the lock does not know first                 the module of its stage
"""

import importlib
from pathlib import Path

from ajuste.core.errors import UsageError
from ajuste.core.params import Compute, Config, lookup, read_yaml, section, typed
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
    locked = _locked()
    sections = {name: section(params, *split_name(name)) for name in stages}
    doubtful = [name for name, entry in stages.items() if not _was_typed(entry, params, locked.get(name, {}))]
    doubtful.sort(key=lambda name: _keys(sections[name]) <= _known_keys(name, locked.get(name, {})))
    for name in doubtful:
        typed(config_type_of(name), sections[name], ".".join(filter(None, split_name(name)))).check()


def _check_names(params: dict, stages: dict[str, dict]) -> None:
    """Sections, and plain keys of a verb, that no stage reads."""
    names = [split_name(name) for name in stages]
    verbs = {verb for verb, _ in names}
    if unknown := sorted(params.keys() - {"compute"} - verbs):
        known = ", ".join(sorted({"compute"} | verbs))
        raise UsageError(f"params.yaml: unknown section `{unknown[0]}`: known sections are {known}")
    read = {key for entry in stages.values() for key in entry.get("params", [])}
    for verb in sorted(verbs & params.keys()):
        for key, value in params[verb].items() if isinstance(params[verb], dict) else ():
            if isinstance(value, dict) and (verb, key) not in names:
                raise UsageError(f"params.yaml: unknown section `{verb}.{key}`: dvc.yaml has no stage `{verb}_{key}`")
            if verb not in read and f"{verb}.{key}" not in read:
                known = ", ".join(sorted(name.removeprefix(f"{verb}.") for name in read if name.startswith(f"{verb}.")))
                raise UsageError(f"params.yaml: unknown key `{verb}.{key}`: known keys are {known}")


def _locked() -> dict[str, dict]:
    """The stages of dvc.lock; none where there is no lock, or only half of one, which a kill can leave."""
    try:
        return read_yaml(Path("dvc.lock")).get("stages") or {}
    except (UsageError, AttributeError):
        return {}


def _was_typed(entry: dict, params: dict, locked: dict) -> bool:
    """Whether the stage has run on these params with these modules, as far as they can say what its config is."""
    recorded = _params_of(locked)
    hashes = {dep["path"]: dep.get("md5") for dep in locked.get("deps", [])}
    modules = [dep for dep in entry.get("deps", []) if dep.startswith("tasks/")]
    try:
        same = all(recorded[key] == lookup(params, key) for key in entry.get("params", []) if key != "compute")
    except (KeyError, UsageError):
        return False
    same = same and bool(locked)
    return same and all(Path(dep).is_file() and hashes.get(dep) == md5_of(Path(dep)) for dep in modules)


def _params_of(locked: dict) -> dict:
    """The params of a lock entry by dotted key."""
    return {key: value for values in locked.get("params", {}).values() for key, value in values.items()}


def _known_keys(name: str, locked: dict) -> set[str]:
    """Keys that a stage's section has in the lock, as `_keys` names them."""
    own = ".".join(filter(None, split_name(name)))
    found: set[str] = set()
    for key, value in _params_of(locked).items():
        inside = key in (own, split_name(name)[0])
        found |= _keys(value if inside and isinstance(value, dict) else {key.rpartition(".")[2]: value})
    return found


def _keys(tree: dict, before: str = "") -> set[str]:
    """The keys of a tree at every depth, dotted."""
    found = set()
    for key, value in tree.items():
        found |= {f"{before}{key}"} | (_keys(value, f"{before}{key}.") if isinstance(value, dict) else set())
    return found
