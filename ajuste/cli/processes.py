"""Servers that a command starts on 127.0.0.1: a free port, a log, an answer to wait for, and an orderly end."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

START_SECONDS = 300  # the first start of MLflow and of Prefect migrates their databases, on a busy machine for minutes
STOP_SECONDS = 10


def is_free(port: int) -> bool:
    """True if nothing listens on this port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port(wanted: int) -> int:
    """The wanted port of 127.0.0.1 if nothing listens there, else (and for 0) one that is free now."""
    if wanted and is_free(wanted):
        return wanted
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def python(*module: str) -> list[str]:
    """The command that runs a module with this interpreter; -P: nothing in the working folder is imported instead."""
    return [sys.executable, "-P", "-m", *module]


def start(command: Sequence[str], log: Path, env: Mapping[str, str], cwd: Path, user: int | None = None,
          group: int | None = None) -> subprocess.Popen:  # fmt: skip
    """Start a process that leads a session of its own, so that its children can end with it. The log is made anew,
    the one before it stays as NAME.log.1."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_name(f"{log.name}.1"))
    with log.open("w") as file:
        return subprocess.Popen(
            list(command), cwd=cwd, env=dict(env), stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True, user=user, group=group, extra_groups=None if user is None else [],
        )  # fmt: skip


def answers(url: str) -> bool:
    """True if the address answers with success."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def wait(name: str, process: subprocess.Popen, ready: Callable[[], bool], log: Path) -> None:
    """Return when the process is ready. Raises DataError, naming the log, if it ends or needs too long."""
    from ajuste.core.errors import DataError

    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if process.poll() is not None:
            raise ended(name, process, log)
        if time.monotonic() > deadline:
            raise DataError(f"{name} does not answer after {START_SECONDS} s: see {log}")
        time.sleep(0.3)


def ended(name: str, process: subprocess.Popen, log: Path) -> Exception:
    """The error of a process that is over before it should be."""
    from ajuste.core.errors import DataError

    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = f" ({lines[-1].strip()[:200]})" if lines else ""
    return DataError(f"{name} ended with {process.returncode}{last}: see {log}")


def stop(pid: int, ask: signal.Signals = signal.SIGTERM, seconds: float = STOP_SECONDS) -> None:
    """End a process that leads its session, and what it started: first asked, after some seconds made to."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for sign in (ask, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(pid, sign)
        _, family = psutil.wait_procs(family, timeout=seconds)
        if not family:
            return
    end(family, seconds=seconds)  # in sessions of their own


def end(processes: Sequence[psutil.Process], seconds: float = STOP_SECONDS) -> None:
    """End single processes: first asked, after some seconds made to. What is gone already is no error."""
    left = list(processes)
    for sign in (signal.SIGTERM, signal.SIGKILL):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(sign)
        _, left = psutil.wait_procs(left, timeout=seconds)
