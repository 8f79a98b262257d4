"""dvc.yaml as the code reads it: which stages there are, what each depends on, and the key of what it would compute.

    stage key = sha256(canonical JSON of {cmd, deps: {path: md5}, params}), with the values that dvc.lock writes
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ajuste.core import world
from ajuste.core.errors import UsageError
from ajuste.core.home import home, write_atomically
from ajuste.core.params import lookup, read_yaml

LARGE = 1_000_000  # bytes of a file from which on it is remembered
SETTLED = 2.0  # seconds since its last change


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


def md5_of(path: Path, of_file: Callable[[Path], str] | None = None) -> str:
    """DVC's hash of a file or a folder. `of_file` is another way to the md5 of one file."""
    if path.is_dir():
        return md5_of_listing(
            {file.relative_to(path).as_posix(): md5_of(file, of_file) for file in path.rglob("*") if file.is_file()}
        )
    if of_file:
        return of_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


class Remembered:
    """md5 of a file; a large one is read again only when its inode, size or time of change is another.

    DVC remembers in the same way. The deps of the default run's stages are 10 GB together, mostly the same few models,
    and the flow and the stage both ask for them. Remembered in .state/hashes; only the stage key is made of it.
    """

    def __init__(self) -> None:
        self.file, self.new = home() / ".state" / "hashes", False
        try:
            self.known = dict(json.loads(self.file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            self.known = {}

    def __call__(self, path: Path) -> str:
        stat = path.stat()
        if stat.st_size < LARGE:
            return md5_of(path)
        name, now = str(path.resolve()), [stat.st_ino, stat.st_size, stat.st_mtime_ns]
        seen = self.known.get(name)
        if seen and seen[:-1] == now:
            return seen[-1]
        found = md5_of(path)
        if time.time() - stat.st_mtime > SETTLED:  # a second change in the same tick of the clock would not be seen
            self.known[name], self.new = [*now, found], True
        return found

    def keep(self) -> None:
        """Write what is new; of several processes the first one does."""
        if self.new and world.first():
            write_atomically(self.file, json.dumps(self.known, indent=1, sort_keys=True) + "\n")


def md5_of_listing(files: Mapping[str, str]) -> str:
    """DVC's hash of a folder, from the md5 of its files by relative path: md5 of their sorted JSON list."""
    entries = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir"


def key_of(cmd: str, deps: Mapping[str, str], params: Mapping[str, Any]) -> str:
    """The stage key. `deps` maps path to md5, `params` dotted key to value, as dvc.lock writes them."""
    text = json.dumps({"cmd": cmd, "deps": dict(deps), "params": dict(params)}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def params_of(entry: dict) -> dict:
    """The params of an entry of dvc.lock by dotted key."""
    return {key: value for values in entry.get("params", {}).values() for key, value in values.items()}


def key_of_entry(entry: dict) -> str:
    """The stage key of an entry of dvc.lock."""
    return key_of(entry["cmd"], {dep["path"]: dep["md5"] for dep in entry.get("deps", [])}, params_of(entry))


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
    deps, remembered = {}, Remembered()
    for dep in entry.get("deps", []):
        if not Path(dep).exists():
            cure = "`ajuste data list` shows the sets" if dep.startswith("data/") else "`ajuste run` makes it"
            raise UsageError(f"{dep} is missing: stage `{name}` needs it; {cure}")
        deps[dep] = md5_of(Path(dep), remembered)
    remembered.keep()
    return key_of(entry["cmd"], deps, {key: lookup(params, key) for key in entry.get("params", [])})
