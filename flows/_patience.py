"""Servers that are away for a while: MLflow's and Prefect's. What a run does then.

    must be done (find the run, record, register)    asked again, with pauses of 2, 4, ... 60 s, for PATIENCE seconds
    can be made up for (curves while a stage trains) left out
    is for show (Prefect's artifacts)                left out, with a warning

All that is asked again finds what an earlier, lost answer has made: nothing is recorded twice.

A worker that is gone no longer reads what its run prints: `outlive_worker`.
"""

import os
import time
from collections.abc import Callable
from typing import TypeVar

import httpx
from prefect.logging import get_run_logger
from prefect.runtime import deployment
from rich.console import Console

from ajuste.core.errors import DataError
from ajuste.tracking.runs import store

T = TypeVar("T")
PATIENCE = 600.0
LONGEST_PAUSE = 60.0


def patiently(ask: Callable[..., T], *args: object) -> T:
    """Call; while MLflow's server is away, wait and call again. Raises DataError in one line after PATIENCE seconds."""
    deadline, pause = time.monotonic() + PATIENCE, 2.0
    while True:
        try:
            return ask(*args)
        except Exception as error:
            if not store.unreachable(error):
                raise
            if time.monotonic() > deadline:
                where = store.without_password(store.tracking_uri())
                raise DataError(f"MLflow at {where} did not answer for {PATIENCE:.0f} s: start it and run again; "
                                "what is done stays done") from None  # fmt: skip
        get_run_logger().warning("MLflow's server is away: asked again in %.0f s", pause)
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def unless_unreachable(otherwise: T, ask: Callable[..., T], *args: object) -> T:
    """Call once; `otherwise` if MLflow's server is away."""
    try:
        return ask(*args)
    except Exception as error:
        if not store.unreachable(error):
            raise
        return otherwise


def shown(make: Callable, *, key: str, **content: object) -> None:
    """Make an artifact of the Prefect server; without the server the run goes on without it."""
    try:
        make(key=key, **content)
    except httpx.HTTPError as error:
        get_run_logger().warning("artifact %s was not made: Prefect's server is away (%s)", key, type(error).__name__)


def outlive_worker() -> None:
    """A deployed run, which prints into a pipe of its worker, goes on without a word when that is broken.

    Rich, through which we and Prefect's log print, would end the process.
    """
    if deployment.id:
        Console.on_broken_pipe = _print_to_nobody


def _print_to_nobody(console: Console) -> None:
    nobody = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nobody, console.file.fileno())
    os.close(nobody)
