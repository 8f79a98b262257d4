"""Room on the disk: asked for before the work begins, and known for what it is when it ends in the middle of it.

    ask({folder: bytes}, "stage `gold`")    RoomError if the disks of these folders have less
    was_full(error)                         does an error, or one behind it, say that a disk or a quota is full?

What a stage will write is what it wrote last time, in proportion to what it reads now (`expected`); a merge and a
training know their own numbers and ask for them. A quota cannot be asked, only met: EDQUOT is treated as ENOSPC.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from ajuste.core.errors import RoomError
from ajuste.core.home import home

FULL = (errno.ENOSPC, errno.EDQUOT)
# how safetensors, SQLite and torch's own writer, which have no errno, and DVC's log say it
WORDS = (
    "No space left on device", "Disk quota exceeded", "database or disk is full", "os error 28", "os error 122",
    "PytorchStreamWriter failed writing file",
)  # fmt: skip
KEEP = 5  # versions of a name
CURE = f"`ajuste prune --keep {KEEP}` shows what can go"
NOTHING = 1_000_000  # bytes: with less free nothing can be written
MEGABYTE = 1e6


def ask(needed: Mapping[Path, float], what: str) -> None:
    """Raise RoomError unless the disk of each folder has room for the bytes that will be written below it.

    Folders of one disk ask together. A folder need not exist yet.
    """
    disks: dict[int, tuple[Path, float]] = {}
    for folder, size in needed.items():
        place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        first, before = disks.get(place.stat().st_dev, (place, 0.0))
        disks[place.stat().st_dev] = first, before + size
    for place, size in disks.values():
        free = shutil.disk_usage(place).free
        if size > free:
            raise RoomError(f"{what} will write about {said(size)} and the disk of {place} has {said(free)} free: "
                            f"{said(size - free)} are missing; {CURE}")  # fmt: skip


def ran_out(place: Path, what: str, expected: float | None, written: float) -> str:
    """One line for a disk that became full while `what` had `written` of the `expected` bytes (None: not known)."""
    free = shutil.disk_usage(place).free
    if expected is None:
        missing = "how much more it needs is known after a first whole run"
    else:
        missing = f"about {said(max(expected - written - free, 0.0) or NOTHING)} are missing"
    return f"the disk of {place} (or its quota) is full, {said(free)} free, after {what} wrote {said(written)}: " \
           f"{missing}; {CURE}"


def was_full(error: BaseException | None) -> bool:
    """Whether an error, its cause or what it came from says that there was no room."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if getattr(error, "errno", None) in FULL or says_full(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def says_full(text: str) -> bool:
    """Whether a log or a message has the words for a full disk."""
    return any(words in text for words in WORDS)


def is_full(folder: Path) -> bool:
    """Whether nothing more can be written in a folder now."""
    return shutil.disk_usage(folder).free < NOTHING


def size_of(paths: Iterable[Path]) -> int:
    """Bytes of files and folders, links followed; what is missing, or goes meanwhile, has none."""
    total = 0
    for path in paths:
        files = [Path(top, name) for top, _, names in os.walk(path) for name in names] if path.is_dir() else [path]
        for file in files:
            try:
                total += file.stat().st_size
            except OSError:
                continue
    return total


def last(name: str) -> dict[str, int] | None:
    """{"read", "outs", "checkpoints"}: bytes of a stage's last whole run here, from its .state; None without one."""
    try:
        return json.loads((home() / ".state" / f"{name}.json").read_text(encoding="utf-8"))["room"]
    except (OSError, ValueError, KeyError):
        return None


def expected(name: str, reads: int) -> dict[Path, float] | None:
    """What stage `name` will write, by folder, if it reads so many bytes; None before its first whole run here."""
    if (known := last(name)) is None:
        return None
    share = reads / known["read"] if known["read"] else 1.0
    places = [(Path.cwd(), known["outs"]), (home(), known["checkpoints"])]
    found: dict[Path, float] = {}
    for place, size in places:  # the two may be one folder
        found[place] = found.get(place, 0.0) + share * size
    return found


def for_training(weights: Iterable[object], kept: int) -> float:
    """Bytes of `kept` checkpoints of the weights that learn (tensors), each with Adam's two moments in float32."""
    return kept * sum(w.numel() * (w.element_size() + 8) for w in weights if w.requires_grad)


def said(size: float) -> str:
    """12_345_678 -> "12 MB"; 2_000_000_000 -> "2.0 GB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / MEGABYTE:.0f} MB"
