"""Checkpoints that a kill can not spoil.

A checkpoint is a folder `checkpoint-<step>`. It counts only with its file COMPLETE, which holds the sha256 of every
other file, is written last and is moved into place whole. Whatever lacks it, or does not match it, is removed.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

COMPLETE = "COMPLETE"


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
