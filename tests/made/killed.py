"""What dies, or is asked to end: a training after a step or in a checkpoint, and all processes of a command."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tasks.supervised import loop
from tests.made.projects import environment


class Killed(Exception):
    """Stands for the end of the process."""


def die_thrice(run: Callable[[], object], steps: tuple[int, int], torn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Call `run`, a training of tasks/supervised/loop.py, three times: it dies after each of `steps`, then in
    `torn`."""
    on_step_end, seal = loop._Follow.on_step_end, loop.seal

    def stop_at(step: int):
        def hook(self, args, state, control, **kwargs):
            on_step_end(self, args, state, control, **kwargs)
            if state.global_step == step:
                raise Killed

        return hook

    def tear(folder: Path) -> None:
        if folder.name == torn:
            raise Killed
        seal(folder)

    for step in steps:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(loop._Follow, "on_step_end", stop_at(step))
            run()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "seal", tear)
        run()


def interrupt(run: Callable[[], object], step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Call `run`, a training of tasks/supervised/loop.py, which gets SIGTERM when `step` steps are done and ends by
    itself."""
    begin, before = loop._Follow.on_step_begin, signal.getsignal(signal.SIGTERM)

    def at_step(self, args, state, control, **kwargs):
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        begin(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop._Follow, "on_step_begin", at_step)
        run()
    assert signal.getsignal(signal.SIGTERM) == before


def kill_when(folder: Path, asked: tuple[str, ...], ready: Callable[[], bool]) -> None:
    """Start `ajuste ASKED` in a project, and `kill -9` it with all that it started as soon as `ready()`."""
    shutil.rmtree(folder / ".dvc/cache/runs", ignore_errors=True)  # or DVC would remember, and nothing would run
    command = [sys.executable, "-m", "ajuste.cli.main", *asked]
    process = subprocess.Popen(command, cwd=folder, env=environment(folder), stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    deadline = time.monotonic() + 600
    while not ready():
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.02)
    victims = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid),
               *_processes(folder, "tasks."), *_processes(folder, "studies.")]  # fmt: skip
    for victim in {one.pid for one in victims}:
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def loaded(folder: Path, module: str, *arguments: str) -> bool:
    """Whether the module runs in that project, with these arguments first, and has its libraries in memory."""
    try:
        return any(process.memory_info().rss > 300e6 and process.cmdline()[3:][: len(arguments)] == [*arguments]
                   for process in _processes(folder, module))  # fmt: skip
    except psutil.Error:  # it has ended
        return False


def _processes(folder: Path, module: str) -> list[psutil.Process]:
    """Those that run a module of that project whose name begins so."""
    found = []
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
            if line[1:2] == ["-m"] and line[2].startswith(module) and process.cwd() == str(folder):
                found.append(process)
        except psutil.Error:
            continue
    return found
