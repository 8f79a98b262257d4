"""A training that dies, or is asked to end: after a step, and while a checkpoint is being written."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.supervised import loop


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
