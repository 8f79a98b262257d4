"""Promotion on an MLflow server on PostgreSQL that several machines share. Each has a home, so a lock, of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ajuste.core.imports import ROOT
from ajuste.tracking.registry import promotion
from ajuste.tracking.runs.store import client
from tests.tracking.bare import aliases, at_home, registered
from tests.tracking.test_promotion import is_open, moves, runs_of
from tests.tracking.test_server import postgres, server  # noqa: F401

pytestmark = pytest.mark.slow


def machine(folder: Path, *words: str) -> subprocess.Popen:
    """A move by a process of another home."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.tracking.killed", *words]
    env = {**os.environ, "AJUSTE_HOME": str(folder)}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_kill_9_after_each_write_and_another_machine_finishes(server: str, tmp_path: Path) -> None:  # noqa: F811
    with at_home(tmp_path / "here", server):
        for at in range(20):
            name = registered(f"n{at}-classifier")
            client().set_registered_model_alias(name, "champion", "3")
            client().set_registered_model_alias(name, "previous", "2")
            killed = machine(tmp_path / "there", "rollback", name, "2", f"client:{at}")
            said, error = killed.communicate(timeout=120)
            promotion.settle(name)
            if at == 0:
                assert aliases(name) == {"challenger": "3", "champion": "3", "previous": "2"} and not runs_of(name)
            else:
                assert aliases(name) == {"challenger": "3", "champion": "2", "previous": "3"}
                assert moves(name) == [("outside", None, "3"), ("rollback", "3", "2")] and len(runs_of(name)) == 1
            assert not is_open(name)
            if killed.returncode == 0:
                break
            assert killed.returncode == -signal.SIGKILL, error[-2000:]
        assert at == int(said.split()[0]) + 1 >= 8  # every call that writes was followed by a kill


def test_two_machines_at_once_make_one_history(server: str, tmp_path: Path) -> None:  # noqa: F811
    with at_home(tmp_path / "here", server):
        for number in range(3):
            name = registered(f"both{number}-classifier")
            promotion.move(name, "1", "x", "y")
            both = [machine(tmp_path / version, "promote", name, version, "never") for version in "23"]
            errors = [process.communicate(timeout=120)[1] for process in both]
            # one after the other, or at once: then one is told so, and the other's move is whole
            done = [version for version, process in zip("23", both, strict=True) if process.returncode == 0]
            told = [error for error in errors if "UsageError" in error and "another moved" in error]
            assert done and len(done) + len(told) == 2, errors
            last = moves(name)[-1]
            assert [move for move in moves(name) if move[0] == "outside"] == []
            assert len(runs_of(name)) == 1 + len(done) == len(moves(name)) and last[2] in done
            assert aliases(name) == {"challenger": "3", "champion": last[2], "previous": last[1]} and not is_open(name)
