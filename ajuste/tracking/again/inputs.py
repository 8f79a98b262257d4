"""What of a lock's inputs is another now: the command, the parameter, the line of source, the row of data.

The recorded content of a file is looked for where it can still be: sources in git's history, raw data in DVC's cache.
"""

import difflib
import hashlib
import json
from pathlib import Path

from ajuste.core.errors import UsageError
from ajuste.core.params import lookup, parse_yaml, read_yaml
from ajuste.core.stages import md5_of, md5_of_listing, params_of
from ajuste.tracking.project import dvc, git

MANY = 5  # differences of one file that are listed before "and n more"


def input_differences(recorded: dict, folder: Path) -> list[str]:
    """What of a lock's inputs (commands, params, code, raw data) is another in `folder`, each in one line."""
    definitions = read_yaml(folder / "dvc.yaml").get("stages", {})
    made = {out["path"] for entry in recorded.values() for out in entry.get("outs", [])}
    params = read_yaml(folder / "params.yaml")
    found: dict[str, None] = {}  # ordered set: a dep of many stages is named once
    for name, entry in recorded.items():
        if definitions.get(name, {}).get("cmd") != entry["cmd"]:
            now = definitions[name]["cmd"] if name in definitions else "no such stage"
            found[f"command of stage {name}: {entry['cmd']} -> {now}"] = None
        for key, old in params_of(entry).items():
            for line in _param_differences(key, old, _lookup(params, key)):
                found[line] = None
        for dep in entry.get("deps", []):
            path = folder / dep["path"]
            if any(dep["path"] == out or dep["path"].startswith(f"{out}/") for out in made):
                continue
            if not path.exists():
                found[f"{dep['path']} is missing"] = None
            elif md5_of(path) != dep["md5"]:
                for line in _file_differences(dep["path"], path, dep["md5"]):
                    found[line] = None
    return list(found)


def _lookup(params: dict, key: str) -> object:
    try:
        return lookup(params, key)
    except UsageError:
        return None


def _param_differences(key: str, old: object, new: object) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [line for name in keys for line in _param_differences(f"{key}.{name}", old.get(name), new.get(name))]
    return [] if old == new else [f"parameter {key}: {old} -> {new}"]


def _file_differences(name: str, path: Path, old_md5: str) -> list[str]:
    """The lines of a file, or of a folder's files, that differ from the recorded ones, where those can be found."""
    if path.is_dir():
        old_files = _listing(name, old_md5)
        if old_files is None:
            return [f"{name} differs (its recorded listing is not in the DVC cache)"]
        new_files = {
            file.relative_to(path).as_posix(): md5_of(file) for file in sorted(path.rglob("*")) if file.is_file()
        }
        lines = []
        for file in sorted(old_files.keys() | new_files.keys()):
            if file not in new_files:
                lines.append(f"{name}/{file} is gone")
            elif file not in old_files:
                lines.append(f"{name}/{file} is new")
            elif old_files[file] != new_files[file]:
                lines += _line_differences(f"{name}/{file}", path / file, cached_bytes(old_files[file]))
        return lines
    return _line_differences(name, path, _committed(name, old_md5))


def _line_differences(name: str, path: Path, old: bytes | None) -> list[str]:
    if old is None:
        return [f"{name} differs"]
    before = old.decode("utf-8", "replace").splitlines()
    after = path.read_bytes().decode("utf-8", "replace").splitlines()
    # common ends first: difflib alone takes minutes on a file of 30,000 rows
    start = next(
        (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after))
    )
    end = 0
    while end < min(len(before), len(after)) - start and before[-1 - end] == after[-1 - end]:
        end += 1
    before, after = before[start : len(before) - end], after[start : len(after) - end]
    if len(before) + len(after) > 2000:
        return [f"{name}: lines {start + 1} to {start + max(len(before), len(after))} differ"]
    lines = []
    for tag, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag != "equal":
            what = {"replace": "changed", "delete": "removed", "insert": "added"}[tag]
            row = start + (a if tag == "delete" else c) + 1
            last = start + (b if tag == "delete" else d)
            lines.append(f"{name} line {row} {what}" if last <= row else f"{name} lines {row} to {last} {what}")
    return lines[:MANY] + ([f"{name}: and {len(lines) - MANY} more places"] if len(lines) > MANY else [])


def cached(md5: str) -> Path | None:
    """The file of the DVC cache that a hash names, or None."""
    path = Path(cache_folder()) / "files" / "md5" / md5[:2] / md5[2:]
    return path if path.is_file() else None


def cached_bytes(md5: str) -> bytes | None:
    """The content that a hash names in the DVC cache, or None."""
    path = cached(md5)
    return path.read_bytes() if path else None


def cache_folder() -> str:
    """DVC's cache of the current folder."""
    return dvc.run("cache", "dir").stdout.strip()


def _listing(name: str, md5: str) -> dict[str, str] | None:
    """The files and hashes of a folder under data/ as recorded, from a data.dvc of git's history, or None."""
    for commit in git.commits_with("data.dvc"):
        pointer = git.content(commit, "data.dvc")
        whole = pointer and cached_bytes(parse_yaml(pointer.decode())["outs"][0]["md5"])
        inside = Path(name).relative_to("data").as_posix() + "/"
        entries = [entry for entry in json.loads(whole or "[]") if entry["relpath"].startswith(inside)]
        files = {entry["relpath"].removeprefix(inside): entry["md5"] for entry in entries}
        if md5_of_listing(files) == md5:
            return files
    return None


def _committed(name: str, md5: str) -> bytes | None:
    """The content of a source file as it was when its md5 was recorded, from git's history, or None."""
    for commit in git.commits_with(name):
        shown = git.content(commit, name)
        if shown is not None and hashlib.md5(shown).hexdigest() == md5:
            return shown
    return None
