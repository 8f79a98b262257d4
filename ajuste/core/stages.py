"""dvc.yaml as the code reads it: which stages there are, what each depends on, and the key of what it would compute.

    stage key = sha256(canonical JSON of {cmd, deps: {path: md5}, params}), with the values that dvc.lock writes
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ajuste.core.errors import UsageError
from ajuste.core.params import lookup, read_yaml


def stage_names() -> list[str]:
    """The stages of the default run, in the order of dvc.yaml."""
    return list(read_yaml(Path("dvc.yaml"))["stages"])


def definitions() -> dict[str, dict]:
    """The entries of dvc.yaml by stage, with ${...} filled in from params.yaml."""
    params, text = read_yaml(Path("params.yaml")), json.dumps(read_yaml(Path("dvc.yaml"))["stages"])
    return json.loads(re.sub(r"\$\{([\w.]+)\}", lambda match: str(lookup(params, match[1])), text))


def split_name(name: str) -> tuple[str, str]:
    """classify_lora -> ("classify", "lora"); summary -> ("summary", "")."""
    verb, _, variant = name.partition("_")
    return verb, variant


def md5_of(path: Path) -> str:
    """DVC's hash of a file or a folder."""
    if path.is_dir():
        return md5_of_listing(
            {file.relative_to(path).as_posix(): md5_of(file) for file in path.rglob("*") if file.is_file()}
        )
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def md5_of_listing(files: Mapping[str, str]) -> str:
    """DVC's hash of a folder, from the md5 of its files by relative path: md5 of their sorted JSON list."""
    entries = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir"


def key_of(cmd: str, deps: Mapping[str, str], params: Mapping[str, Any]) -> str:
    """The stage key. `deps` maps path to md5, `params` dotted key to value, as dvc.lock writes them."""
    text = json.dumps({"cmd": cmd, "deps": dict(deps), "params": dict(params)}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def module_of(name: str) -> str:
    """The module that a stage runs: of `python -m tasks.classify.lora` it is `tasks.classify.lora`."""
    return definition(name)["cmd"].split()[2]


def definition(name: str) -> dict:
    """The stage's entry of dvc.yaml with ${...} filled in from params.yaml."""
    found = definitions()
    if name not in found:
        raise UsageError(f"dvc.yaml has no stage `{name}`: stages are {', '.join(found)}")
    return found[name]


def stage_key(name: str) -> str:
    """The key of a stage from the files as they stand now. Raises UsageError for a missing dep."""
    entry, params = definition(name), read_yaml(Path("params.yaml"))
    deps = {}
    for dep in entry.get("deps", []):
        if not Path(dep).exists():
            cure = "`ajuste data list` shows the sets" if dep.startswith("data/") else "`ajuste run` makes it"
            raise UsageError(f"{dep} is missing: stage `{name}` needs it; {cure}")
        deps[dep] = md5_of(Path(dep))
    return key_of(entry["cmd"], deps, {key: lookup(params, key) for key in entry.get("params", [])})
