"""Checkpoints that a kill can not spoil.

A checkpoint is a folder `checkpoint-<step>`. It counts only with its file COMPLETE, which holds the sha256 of every
other file, is written last and is moved into place whole. Whatever lacks it, or does not match it, is removed.

The checkpoints of a stage stand in `.checkpoints/<stage key>/`, and outlive it: when a stage has ended DVC has its
result neither in the cache nor in dvc.lock, and a DVC that is killed then removes the outs when it is run again. So the
stage leaves a file ENDED with its record, and a stage that finds it unrecorded goes on from the last checkpoint, where
nothing is left to train. They go as soon as a dvc.lock that is younger than ENDED has the stage key: by the flow
(`forget`), or by the next stage that starts in this home (`sweep`).
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import yaml

from ajuste.core.home import home, write_atomically
from ajuste.core.params import parse_yaml
from ajuste.core.stages import key_of_entry

COMPLETE, ENDED = "COMPLETE", "ENDED"
LOCKS = ("dvc.lock", "studies/*/dvc.lock")


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file of a folder but COMPLETE, by relative path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != COMPLETE:
            with path.open("rb") as file:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def seal(folder: Path) -> None:
    """Declare a checkpoint whole: flush its files, then write COMPLETE."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    temporary = folder / f".{COMPLETE}"
    temporary.write_text(json.dumps(digests(folder), indent=1, sort_keys=True))
    os.replace(temporary, folder / COMPLETE)


def is_complete(folder: Path) -> bool:
    """True if COMPLETE is there and every file still has its sha256."""
    try:
        return json.loads((folder / COMPLETE).read_text()) == digests(folder)
    except (OSError, ValueError):
        return False


def last_complete(parent: Path) -> Path | None:
    """The whole checkpoint of the highest step under `parent`, or None. Spoilt ones after it are removed."""
    folders = [path for path in parent.glob("checkpoint-*") if path.is_dir() and path.name.split("-")[1].isdigit()]
    for folder in sorted(folders, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        if is_complete(folder):
            return folder
        shutil.rmtree(folder)
    return None


# --- the checkpoints of a stage that has ended ------------------------------------------------------------------------


def of_stage(key: str) -> Path:
    """Where the checkpoints of a stage stand."""
    return home() / ".checkpoints" / key


def end(folder: Path, record: str) -> None:
    """Say that the stage has ended well. record: its .state, which a later start of the same stage gives again."""
    write_atomically(folder / ENDED, record)


def record_of(folder: Path) -> str | None:
    """The record of the stage that ended and left these checkpoints; None if it has not ended."""
    try:
        return (folder / ENDED).read_text(encoding="utf-8")
    except OSError:
        return None


def forget(key: str) -> None:
    """Remove the checkpoints of an ended stage, whose result DVC has; those of an unfinished one stay."""
    if record_of(of_stage(key)) is not None:
        shutil.rmtree(of_stage(key), ignore_errors=True)


def sweep() -> None:
    """Forget every stage whose end a dvc.lock of the current folder has recorded since."""
    ended = {path.parent.name: path.stat().st_mtime_ns for path in (home() / ".checkpoints").glob(f"*/{ENDED}")}
    for lock in (path for pattern in LOCKS for path in Path().glob(pattern) if ended):
        try:
            written, stages = lock.stat().st_mtime_ns, parse_yaml(lock.read_text(encoding="utf-8"))["stages"]
            keys = {key_of_entry(entry) for entry in stages.values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
            continue  # half a file, or another program's: whoever reads it for its own sake says so
        for key in keys & ended.keys():
            if ended[key] <= written:
                forget(key)
