"""Who works in the worktree of a deployment: a lock on the shared home, which the kernel frees when the run has ended.

A pull step (infra/worktree.py) makes the worktree and is over before the run begins, so it cannot hold the lock itself.
It leaves a keeper: a process that inherits the lock, waits for the end of the run's engine and ends with it.

    with entered(home, "adapt", wait=20):      UsageError while another run works there
        ...                                    make the worktree
    holder(home, "adapt")                      "4711 of run 7f0c...": whose engine lives; None if nobody's

A process table knows the processes of one container alone. This lock is seen by all that mount the home: containers of
one machine, and machines that share it over NFS 4, which frees the lock of a machine that is gone after its lease.
"""

import contextlib
import os
import select
from collections.abc import Iterator
from pathlib import Path

import psutil

from ajuste.core.locks import held, owner

ENGINE = "prefect.engine"


@contextlib.contextmanager
def entered(home: Path, name: str, wait: float) -> Iterator[None]:
    """Own the worktree of a deployment while the body runs and, below a Prefect engine, until that has ended."""
    lock, engine = lock_of(home, name), engine_above()
    with held(lock, f"another run works in the worktree of `{name}`", wait):
        yield
        if engine is not None:
            _leave_keeper(lock, engine, os.environ.get("PREFECT__FLOW_RUN_ID", "?"))


def holder(home: Path, name: str) -> str | None:
    """Who works in the worktree of a deployment; None if nobody does."""
    lock = lock_of(home, name)
    return owner(lock) if lock.exists() else None


def lock_of(home: Path, name: str) -> Path:
    """The lock stands in the home that all runs share, never in that of one deployment."""
    return home / ".prefect" / "locks" / f"{name}.lock"


def engine_above() -> psutil.Process | None:
    """The process in which this flow run goes on; None where a person asks."""
    for process in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):
            if ENGINE in process.cmdline()[:4]:
                return process
    return None


def _leave_keeper(lock: Path, engine: psutil.Process, run: str) -> None:
    """A process of its own session, without this one's pipes, that has nothing but the lock."""
    lock.write_text(f"{engine.pid} of run {run}")
    if os.fork():
        return
    try:
        os.setsid()
        os.chdir("/")
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        waited = select.poll()
        waited.register(os.pidfd_open(engine.pid), select.POLLIN)  # readable when the process has ended
        waited.poll()
    finally:
        os._exit(0)
