"""Can a recorded result be made again? A clean clone, a home of its own, data by digest, `dvc repro --force`.

First the inputs: what stands at the revision against what dvc.lock records. A changed parameter, source line or data
row is named, and nothing is run, since other inputs give another result. Then every stage runs again in the clone and
the outs are compared by hash: bit-equal, or which of them differ. Equal bytes are promised for one kind of CPU and one
thread count (docs/reproducibility.md).
"""

import difflib
import hashlib
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tasks._params import DataError, UsageError, lookup, md5_of, md5_of_listing, parse_yaml, read_yaml
from tasks._stage import home
from tracking import versions

MANY = 5  # differences of one kind that are listed before "and n more"


@dataclass
class Verdict:
    """`equal` is True if every out is bit-equal; else `differences` names what is not."""

    revision: str
    equal: bool
    outs: int = 0
    differences: list[str] = field(default_factory=list)
    inputs_differ: bool = False


def reproduce(revision: str = "HEAD", keep: Path | None = None) -> Verdict:
    """Make the result of a revision again and compare. `keep` is where the clone stays; else it is removed.

    HEAD is compared with the dvc.lock that stands in the working tree, the proof of the last run; any other revision
    with the lock committed in it. Raises UsageError for an unknown revision, DataError when the run itself fails.
    """
    commit = versions.git("rev-parse", "--verify", f"{revision}^{{commit}}").strip()
    here = commit == versions.git_commit()
    recorded = versions.lock() if here else versions.parse_lock(versions.git("show", f"{commit}:dvc.lock"))
    if not recorded:
        raise DataError("dvc.lock is empty: there is no result to make again; `ajuste run` makes the first")
    if here:
        # uncommitted changes would not be in the clone: they are named, not ignored
        differences = input_differences(recorded, Path.cwd())
        if differences:
            return Verdict(commit, False, 0, differences, True)
        changed = versions.changed_files()
        if changed:
            raise DataError(f"uncommitted changes would not be in the clone: commit {', '.join(changed[:MANY])} first")
    with tempfile.TemporaryDirectory(prefix="ajuste-reproduce-") as scratch:
        clone = (keep or Path(scratch) / "clone").resolve()
        _clone(commit, clone)
        differences = input_differences(recorded, clone)
        if differences:
            return Verdict(commit, False, 0, differences, True)
        made = _run(clone)
    return compare(commit, recorded, made)


def compare(commit: str, recorded: dict, made: dict) -> Verdict:
    """Two locks: every out of every stage by hash."""
    differences, outs = [], 0
    for name, entry in recorded.items():
        hashes = {out["path"]: out["md5"] for out in made.get(name, {}).get("outs", [])}
        for out in entry.get("outs", []):
            outs += 1
            if hashes.get(out["path"]) != out["md5"]:
                differences.append(f"out {out['path']} of stage {name}: {out['md5']} -> {hashes.get(out['path'])}")
    return Verdict(commit, not differences, outs, differences)


def input_differences(recorded: dict, folder: Path) -> list[str]:
    """What of a lock's inputs (commands, params, code, raw data) is another in `folder`, each in one line."""
    made = {out["path"] for entry in recorded.values() for out in entry.get("outs", [])}
    params = read_yaml(folder / "params.yaml")
    found: dict[str, None] = {}  # ordered set: a dep of many stages is named once
    for entry in recorded.values():
        for key, old in versions.lock_params(entry).items():
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
                lines += _line_differences(f"{name}/{file}", path / file, _cached(old_files[file]))
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


def _cached(md5: str) -> bytes | None:
    """The content that a hash names in the DVC cache, or None."""
    directory = versions.dvc("cache", "dir").stdout.strip()
    path = Path(directory) / "files" / "md5" / md5[:2] / md5[2:]
    return path.read_bytes() if path.is_file() else None


def _listing(name: str, md5: str) -> dict[str, str] | None:
    """The files and hashes of a folder under data/ as recorded, from a data.dvc of git's history, or None."""
    commits = subprocess.run(["git", "log", "--format=%H", "--", "data.dvc"], capture_output=True, text=True).stdout
    for commit in commits.split():
        whole = _cached(parse_yaml(versions.git("show", f"{commit}:data.dvc"))["outs"][0]["md5"])
        inside = Path(name).relative_to("data").as_posix() + "/"
        entries = [entry for entry in json.loads(whole or "[]") if entry["relpath"].startswith(inside)]
        files = {entry["relpath"].removeprefix(inside): entry["md5"] for entry in entries}
        if md5_of_listing(files) == md5:
            return files
    return None


def _committed(name: str, md5: str) -> bytes | None:
    """The content of a source file as it was when its md5 was recorded, from git's history, or None."""
    commits = subprocess.run(["git", "log", "--format=%H", "--", name], capture_output=True, text=True).stdout.split()
    for commit in commits:
        shown = subprocess.run(["git", "show", f"{commit}:{name}"], capture_output=True)
        if shown.returncode == 0 and hashlib.md5(shown.stdout).hexdigest() == md5:
            return shown.stdout
    return None


def _clone(commit: str, clone: Path) -> None:
    """A clone at the commit, its data from this project's cache by digest, and a home of its own."""
    root = versions.git("rev-parse", "--show-toplevel").strip()
    versions.git("clone", "--quiet", "--no-checkout", root, str(clone))
    versions.git("-C", str(clone), "checkout", "--quiet", "--detach", commit)
    assets = home() / ".assets"
    if assets.exists():
        (clone / ".assets").symlink_to(assets)
    cache = versions.dvc("cache", "dir").stdout.strip()
    for args in (["remote", "add", "--local", "--default", "origin-cache", cache], ["pull", "--quiet", "data.dvc"]):
        done = _dvc_in(clone, *args, capture_output=True)
        if done.returncode != 0:
            reason = done.stderr.strip()
            raise DataError(f"the data of {commit[:8]} is not in the DVC cache: `ajuste data pull` ({reason})")


def _run(clone: Path) -> dict:
    """Every stage again, whatever the caches hold; returns the new lock."""
    done = _dvc_in(clone, "repro", "--force", "--no-run-cache", stdout=sys.stderr)
    if done.returncode != 0:
        raise DataError("the run in the clone failed; its last lines are above")
    return versions.parse_lock((clone / "dvc.lock").read_text(encoding="utf-8"))


def _dvc_in(clone: Path, *args: str, **options: object) -> subprocess.CompletedProcess[str]:
    env = {**versions.environment(), "AJUSTE_HOME": str(clone)}
    env.pop("AJUSTE_FLOW_PID", None)
    return subprocess.run([*versions.DVC, *args], cwd=clone, env=env, text=True, **options)


def report(verdict: Verdict) -> str:
    """The verdict for a person."""
    if verdict.equal:
        return f"bit-equal: all {verdict.outs} outs of {verdict.revision[:8]} were made again with the same hashes"
    head = "other inputs than dvc.lock records" if verdict.inputs_differ else f"not equal, of {verdict.outs} outs"
    return "\n".join([f"not reproduced ({head}):", *(f"  {line}" for line in verdict.differences)])
