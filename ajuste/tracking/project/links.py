"""A large file a second time without a second time its bytes, where the file system can.

    reflink     the same blocks until one of the two is changed        btrfs, XFS, ZFS, APFS
    hard link   a second name of the file in DVC's cache, which is read-only and named by its own hash
    copy        across file systems, and of what no cache holds

A hard link is made to the cache's file and not to the workspace's: that one may be a file of its own, which a program
changes in place. A file that has two names gives its bytes back when both are gone (`ajuste prune` counts them so).
"""

import fcntl
import os
import shutil
from functools import cache
from pathlib import Path
from typing import Literal

from ajuste.core.stages import LARGE, Remembered, md5_of
from ajuste.tracking.project import dvc

FICLONE = 0x40049409  # of Linux: the blocks of another file


def place(source: Path, target: Path) -> Literal["reflink", "hard link", "copy"]:
    """Bring a file to `target`, whose folder is there, as cheaply as can be; says how."""
    if source.stat().st_size >= LARGE:
        if _reflinked(source, target):
            return "reflink"
        cached = _cached(source)
        if cached is not None:
            try:
                os.link(cached, target)
                return "hard link"
            except OSError:  # another file system, or one without links
                pass
    shutil.copyfile(source, target)
    return "copy"


def copied(source: Path, target: Path) -> None:
    """A folder with all in it."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.rglob("*")):
        there = target / path.relative_to(source)
        if path.is_dir():
            there.mkdir(exist_ok=True)
        else:
            place(path, there)


def _reflinked(source: Path, target: Path) -> bool:
    try:
        with source.open("rb") as old, target.open("wb") as new:
            fcntl.ioctl(new.fileno(), FICLONE, old.fileno())
        return True
    except OSError:
        target.unlink(missing_ok=True)
        return False


def _cached(source: Path) -> Path | None:
    """The file of DVC's cache with the bytes of this one."""
    remembered = Remembered()
    md5 = md5_of(source, remembered)
    remembered.keep()
    found = _cache() / "files" / "md5" / md5[:2] / md5[2:]
    return found if found.is_file() and found.stat().st_size == source.stat().st_size else None


@cache
def _cache() -> Path:
    return Path(dvc.run("cache", "dir").stdout.strip() or ".dvc/cache").resolve()
