"""A clone of this repository on preset tiny, as a user would make it, and what the end-to-end tests ask of it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]


def environment(project: Path) -> dict[str, str]:
    """Code from the clone, a home in the clone, nothing inherited that points elsewhere."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("AJUSTE_", "PREFECT_", "MLFLOW_"))}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    return {**env, "AJUSTE_HOME": str(project), "PYTHONPATH": str(project)}


def run(project: Path, *command: str, check: bool = True, timeout: float = 1800) -> subprocess.CompletedProcess[str]:
    """Run a command in the project; a failure shows what it printed."""
    done = subprocess.run(
        command, cwd=project, env=environment(project), capture_output=True, text=True, timeout=timeout
    )
    assert not check or done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


def ajuste(project: Path, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """The command line of the clone."""
    return run(project, sys.executable, "-m", "ajuste.cli.main", *args, check=check)


def tiny_project(folder: Path) -> Path:
    """A clone with preset tiny and the packaged data, committed; nothing has run yet."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    run(folder, "git", "config", "user.email", "test@localhost")
    run(folder, "git", "config", "user.name", "test")
    ajuste(folder, "preset", "tiny")
    ajuste(folder, "data", "pull")
    run(folder, "git", "commit", "--quiet", "--all", "--message", "Preset tiny")
    return folder


RUNS = """
import json
from mlflow import MlflowClient
from ajuste.tracking.runs import store as runs
client = MlflowClient(runs.tracking_uri())
found = client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=1000)
print(json.dumps([{"id": r.info.run_id, "status": r.info.status, "tags": r.data.tags} for r in found]))
"""


def mlflow_runs(project: Path) -> list[dict]:
    """Every MLflow run of the project: id, status, tags."""
    return json.loads(run(project, sys.executable, "-c", RUNS).stdout.strip().splitlines()[-1])


# --- kill -9 ----------------------------------------------------------------------------------------------------------


def kill_when(folder: Path, asked: tuple[str, ...], ready: Callable[[], bool]) -> None:
    """Start a command of the project that DVC has no memory of, and kill -9 all of it as soon as it is ready for it."""
    shutil.rmtree(folder / ".dvc/cache/runs", ignore_errors=True)  # or DVC would remember, and nothing would run
    command = [sys.executable, "-m", "ajuste.cli.main", *asked]
    process = subprocess.Popen(command, cwd=folder, env=environment(folder), stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    deadline = time.monotonic() + 600
    while not ready():
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.02)
    victims = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid),
               *processes(folder, "tasks."), *processes(folder, "studies.")]  # fmt: skip
    for victim in {one.pid for one in victims}:
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def loaded(folder: Path, module: str) -> bool:
    """Whether the module runs with its libraries in memory."""
    try:
        return any(process.memory_info().rss > 300e6 for process in processes(folder, module))
    except psutil.Error:  # it has ended
        return False


def processes(folder: Path, module: str) -> list[psutil.Process]:
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
