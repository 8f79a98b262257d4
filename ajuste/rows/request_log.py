"""The server's request log as windows: so many requests of one version in a row, never the same request twice.

    <home>/.requests/<name>.jsonl.1, then <name>.jsonl        the older file first; the server rotates them
    {"time": "...Z", "name": ..., "version": "3", "kind": "classifier", "text": ..., "label": ..., "probability": ...}

Windows lie end to end: the next begins after the request where the last judged one ended, which is found again by the
digest of its line. If it has been rotated away, all that is left is newer. Lines are streamed; held are at most the
rows of the windows that are asked for. A broken line costs itself alone; it is counted and named.
"""

import hashlib
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Request:
    """One logged request. `digest` is of its line."""

    time: str
    text: str
    label: str | None
    digest: str


@dataclass
class Log:
    """What was read of a log: the latest whole windows that are new, oldest first, and what was left out."""

    windows: list[list[Request]] = field(default_factory=list)
    waiting: int = 0  # new requests that do not fill a window yet
    skipped: int = 0  # whole windows that were older than those asked for
    others: int = 0  # requests that another version answered
    broken: int = 0
    first_broken: str = ""  # file:line: what is wrong


def log_files(folder: Path, name: str) -> list[Path]:
    """The log of a model, older file first; those that exist."""
    current = folder / f"{name}.jsonl"
    return [path for path in (current.with_name(f"{current.name}.1"), current) if path.is_file()]


def read_windows(files: list[Path], version: str, rows: int, windows: int, after: str | None = None) -> Log:
    """The latest `windows` whole windows of `rows` requests of `version`, after the request of digest `after`."""
    log, kept, new = Log(), deque(maxlen=rows * (windows + 1) - 1), 0
    for request in _requests(files, version, log):
        if request.digest == after:
            kept.clear()
            new = 0
        else:
            kept.append(request)
            new += 1
    whole, log.waiting = divmod(new, rows)
    log.skipped = max(0, whole - windows)
    full = list(kept)[: len(kept) - log.waiting]
    taken = min(whole, windows) * rows
    full = full[len(full) - taken :]
    log.windows = [full[begin : begin + rows] for begin in range(0, taken, rows)]
    return log


def _requests(files: list[Path], version: str, log: Log) -> Iterator[Request]:
    for path in files:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    request, answered_by = _request(line)
                except ValueError as error:
                    log.broken += 1
                    log.first_broken = log.first_broken or f"{path.name}:{number}: {error}"
                    continue
                if answered_by == version:
                    yield request
                else:
                    log.others += 1


def _request(line: bytes) -> tuple[Request, str]:
    """The request and the version that answered it. Raises ValueError, in words, for a line that is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("the line is no valid JSON") from None
    if not isinstance(value, dict):
        raise ValueError("the line is no JSON object")
    for key in ("time", "version", "text"):
        if not isinstance(value.get(key), str):
            raise ValueError(f"`{key}` is missing or no string")
    label = value.get("label")
    digest = hashlib.sha256(line.rstrip()).hexdigest()[:32]
    return Request(value["time"], value["text"], label if isinstance(label, str) else None, digest), value["version"]
