"""A deployed run prints into a pipe of its worker: without a reader Rich would end the process."""

import os
from types import SimpleNamespace

import pytest
from rich.console import Console

from flows import _patience


def test_a_deployed_run_goes_on_when_nobody_reads_what_it_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = Console.on_broken_pipe
    monkeypatch.setattr(Console, "on_broken_pipe", ends)  # is put back afterwards
    monkeypatch.setattr(_patience, "deployment", SimpleNamespace(id=None))
    _patience.outlive_worker()
    assert Console.on_broken_pipe is ends, "`ajuste run | head` ends as other commands do"

    monkeypatch.setattr(_patience, "deployment", SimpleNamespace(id="deployed"))
    _patience.outlive_worker()
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as file:
        for _ in range(2):
            Console(file=file).print("to nobody")
