"""`kill -9` at random moments, then the run again: the same dvc.lock, one MLflow run a stage, no twin stages."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.made.projects import ajuste, environment, mlflow_runs, tiny_project

KILLS = 10


class Twins(threading.Thread):
    """Watches the process table for two processes in one stage of a project."""

    def __init__(self, project: Path) -> None:
        super().__init__(daemon=True)
        self.project, self.found, self.done = project, [], threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.1):
            count: Counter = Counter()
            for process in psutil.process_iter():
                try:
                    line = process.cmdline()
                    if (
                        len(line) > 2
                        and line[1] == "-m"
                        and line[2].startswith("tasks.")
                        and process.cwd() == str(self.project)
                    ):
                        count[" ".join(line[2:])] += 1
                except psutil.Error:
                    continue
            self.found += [name for name, number in count.items() if number > 1]


@pytest.mark.slow
def test_killed_runs_end_as_an_undisturbed_one(tmp_path: Path) -> None:
    calm = tiny_project(tmp_path / "calm")
    ajuste(calm, "run")
    expected = (calm / "dvc.lock").read_bytes()

    project = tiny_project(tmp_path / "killed")
    watch = Twins(project)
    watch.start()
    chance = random.Random(7)
    kills = 0
    while kills < KILLS:
        command = [sys.executable, "-m", "ajuste.cli.main", "run"]
        process = subprocess.Popen(
            command,
            cwd=project,
            env=environment(project),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(timeout=chance.uniform(3, 22))
            (project / "dvc.lock").unlink()  # it ended before the kill: from the start again, without the run cache
            subprocess.run(["rm", "-rf", str(project / ".dvc/cache/runs"), str(project / "artifacts")], check=True)
        except subprocess.TimeoutExpired:
            # alternately the flow alone, whose DVC lives on, and all that the run started
            if kills % 2:
                process.kill()
            else:
                for victim in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                    try:
                        os.kill(victim.pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
            process.wait()
            kills += 1
    ajuste(project, "run")
    watch.done.set()
    watch.join()

    assert (project / "dvc.lock").read_bytes() == expected
    assert watch.found == []
    keys = Counter(run["tags"]["ajuste.stage_key"] for run in mlflow_runs(project) if "ajuste.stage_key" in run["tags"])
    assert len(keys) == len(mlflow_stage_keys(project)) and set(keys.values()) == {1}
    assert all(run["status"] == "FINISHED" for run in mlflow_runs(project))
    time.sleep(1)
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if "tasks." in " ".join(p.info["cmdline"] or []) and _in(p, project)
    ]


def mlflow_stage_keys(project: Path) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", "from ajuste.tracking.project import lock; print(*map(lock.stage_key, lock.stages()))"],
        cwd=project,
        env=environment(project),
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def _in(process: psutil.Process, project: Path) -> bool:
    try:
        return process.cwd() == str(project)
    except psutil.Error:
        return False
