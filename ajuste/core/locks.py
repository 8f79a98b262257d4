"""One process at a time: an exclusive lock on a file, which the kernel frees however its owner ends.

    with held(path, "stage `ppo` is already running", wait=15):
        ...

The file stays when its owner has gone, and so does the process id that it wrote there: whether somebody owns the lock
is asked of the kernel (`owner`), never of the file's presence or content.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ajuste.core.errors import UsageError

PAUSE = 0.2  # seconds between two attempts


@contextmanager
def held(path: Path, busy: str = "", wait: float | None = 1) -> Iterator[None]:
    """Own the lock while the body runs, in this process and thread alone; it is not to be nested.

    Waits up to `wait` seconds, without end if None. Raises UsageError: `busy`, then the owner's process id.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        if wait is None:
            fcntl.flock(file, fcntl.LOCK_EX)
        else:
            deadline = time.monotonic() + wait
            while not _taken(file.fileno(), fcntl.LOCK_EX):
                if time.monotonic() > deadline:
                    raise UsageError(f"{busy} as process {_written(path)}: wait for it or end it")
                time.sleep(PAUSE)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def owner(path: Path) -> str | None:
    """The process id of who owns the lock now, "unknown" if the owner wrote none; None if nobody owns it.

    It asks by a shared lock for a moment: two who ask do not see each other, and who wants to own the lock waits.
    """
    with path.open() as file:
        return None if _taken(file.fileno(), fcntl.LOCK_SH) else _written(path)


def _taken(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _written(path: Path) -> str:
    return path.read_text().strip() or "unknown"
