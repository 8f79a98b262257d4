"""A clone of this repository on preset tiny, as a user would make it, and what the end-to-end tests ask of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

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
