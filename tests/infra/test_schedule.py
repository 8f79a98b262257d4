"""The schedule of infra/prefect.yaml with a real server and a real worker: a cron fires, and the flow does its work."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import httpx
import pytest
import yaml

from tests.projects import ROOT, environment, mlflow_runs, run, tiny_project


def test_the_pins_without_which_schedules_or_runs_fail_silently() -> None:
    """prefect 3.8: with SQLAlchemy 2.1 no schedule ever fires; with fastapi 0.151 and later every flow run dies."""
    assert metadata.version("prefect").startswith("3.8.")
    assert [int(part) for part in metadata.version("sqlalchemy").split(".")[:2]] < [2, 1]
    assert [int(part) for part in metadata.version("fastapi").split(".")[:2]] < [0, 151]
    pinned = (ROOT / "pyproject.toml").read_text()
    assert '"sqlalchemy>=2.0,<2.1"' in pinned and '"fastapi>=0.139,<0.151"' in pinned


def test_the_deployments_name_flows_that_exist_and_hold_no_hyper_parameter() -> None:
    deployments = yaml.safe_load((ROOT / "infra" / "prefect.yaml").read_text())["deployments"]
    assert [item["name"] for item in deployments] == ["adapt", "reproduce", "drift", "recover"]
    for item in deployments:
        path, name = item["entrypoint"].split(":")
        assert f"def {name}(" in (ROOT / path).read_text()
        assert set(item["parameters"]) <= {"revision", "from_stage", "until"}
        assert item["work_pool"]["job_variables"]["env"]["PREFECT_RUNNER_HEARTBEAT_FREQUENCY"] == "30"
        if item["name"] != "recover":
            assert item["schedules"][0]["cron"]
            assert item["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
            assert {"flows.late.cancel_late": {}} in item["pull"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(project: Path, env: dict[str, str], log: Path, *command: str) -> subprocess.Popen:
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", *command], cwd=project, env=env, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip


def stop(process: subprocess.Popen) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, sign)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                continue


@pytest.fixture
def scheduled(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A project on preset tiny with a server, a pool and a worker of its own; yields it and the server's address."""
    project = tiny_project(tmp_path / "ajuste")
    api = f"http://127.0.0.1:{free_port()}/api"
    env = environment(project) | {
        "PREFECT_HOME": str(project / ".prefect"),
        "PREFECT_API_URL": api,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "AJUSTE_HOME": str(project),
    }
    (project / ".prefect" / "worktrees" / "adapt").mkdir(parents=True)  # as `ajuste deploy` does
    port = api.split(":")[2].split("/")[0]
    started = [start(project, env, tmp_path / "server.log", "prefect", "server", "start", "--port", port)]
    try:
        wait_for(lambda: httpx.get(f"{api}/health").status_code == 200, 120, tmp_path / "server.log")
        for command in (
            ["work-pool", "create", "ajuste", "--type", "process"],
            ["--no-prompt", "deploy", "--all", "--prefect-file", str(every_minute(tmp_path))],
        ):
            done = subprocess.run(
                [sys.executable, "-m", "prefect", *command], cwd=project, env=env, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout + done.stderr
        worker = ["prefect", "worker", "start", "--pool", "ajuste", "--limit", "1"]
        started.append(start(project, env, tmp_path / "worker.log", *worker))
        yield project, api
    finally:
        for process in reversed(started):  # the worker before its server
            stop(process)


def every_minute(folder: Path) -> Path:
    """infra/prefect.yaml with adapt due every minute and ending after its first stage; reproduce stays weekly."""
    settings = yaml.safe_load((ROOT / "infra" / "prefect.yaml").read_text())
    settings["deployments"][0]["schedules"][0]["cron"] = "* * * * *"
    settings["deployments"][0]["parameters"] = {"until": "base_encoder"}
    (folder / "prefect.yaml").write_text(yaml.safe_dump(settings))
    return folder / "prefect.yaml"


def wait_for(condition, seconds: float, log: Path):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if found := condition():
                return found
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"not within {seconds} s; {log.name}: {log.read_text()[-3000:]}")


@pytest.mark.slow
def test_a_cron_fires_adapt_in_a_worktree_of_the_committed_revision(
    scheduled: tuple[Path, str], tmp_path: Path
) -> None:
    project, api = scheduled
    (project / "flows" / "pipeline.py").write_text("raise SystemExit('an edit nobody committed')\n")

    def ended() -> dict | None:
        runs = httpx.post(f"{api}/flow_runs/filter", json={"sort": "EXPECTED_START_TIME_ASC", "limit": 5}).json()
        states = [(item["state"]["type"], item["state"]["message"]) for item in runs]
        assert not any(kind in ("FAILED", "CRASHED") for kind, _ in states), (states, logs())
        return next((item for item in runs if item["state"]["type"] == "COMPLETED"), None)

    def logs() -> str:
        lines = httpx.post(f"{api}/logs/filter", json={"limit": 200}).json()
        return "\n".join(line["message"] for line in lines) + (tmp_path / "worker.log").read_text()[-2000:]

    done = wait_for(ended, 420, tmp_path / "worker.log")
    assert done["auto_scheduled"] and done["parameters"]["until"] == "base_encoder"
    place = project / ".prefect" / "worktrees" / "adapt"
    assert (place / "artifacts" / "base" / "encoder" / "base.json").exists()
    assert not (project / "artifacts").exists(), "the main checkout is left alone"
    assert run(place, "git", "rev-parse", "HEAD").stdout == run(project, "git", "rev-parse", "HEAD").stdout
    stages = [item["tags"].get("ajuste.stage") for item in mlflow_runs(project)]
    assert stages.count("base_encoder") == 1
