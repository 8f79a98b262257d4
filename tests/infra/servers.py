"""A project on preset tiny, deployed by `ajuste deploy` to real servers: what the tests of deployed runs share.

Each process leads a session of its own and is ended by its id. Schedules are paused: a test starts what it wants to
run, or lets a schedule of its own fire.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import httpx
import psutil

from ajuste.cli.processes import free_port
from tests.made.projects import ajuste, environment, mlflow_runs, run, tiny_project

T = TypeVar("T")
ENDS = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def start(project: Path, env: dict[str, str], log: Path, *command: str) -> subprocess.Popen:
    """Start a module of this Python; its output is added to the log."""
    with log.open("a") as file:
        return subprocess.Popen(
            [sys.executable, "-m", *command], cwd=project, env=env, stdout=file, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip


def stop(process: subprocess.Popen) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, sign)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                continue


def wait_for(condition: Callable[[], T], seconds: float, log: Path) -> T:
    """What the condition says when it is no longer false; a server that is away is waited for."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if found := condition():
                return found
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"not within {seconds} s; {log.name}: {log.read_text()[-3000:]}")


class Deployed:
    """The project, its servers `prefect`, `mlflow` and `worker`, and what they say over HTTP."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.project = folder, tiny_project(folder / "ajuste")
        self.place = self.project / ".prefect" / "worktrees" / "adapt"
        self.checkpoints = self.project / ".prefect" / "homes" / "adapt" / ".checkpoints"
        self.ports = {name: free_port(0) for name in ("prefect", "mlflow")}
        self.api = f"http://127.0.0.1:{self.ports['prefect']}/api"
        self.env = environment(self.project) | {
            "PREFECT_HOME": str(self.project / ".prefect"),
            "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{self.ports['mlflow']}",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        self.running: dict[str, subprocess.Popen] = {}
        self.since = 0.0

    def start(self, name: str) -> None:
        """Start a server and wait until it answers."""
        store = self.project / "mlruns"
        here = ["--host", "127.0.0.1", "--port", str(self.ports.get(name, 0))]
        command = {
            "prefect": ["prefect", "server", "start", *here],
            "mlflow": ["mlflow", "server", *here, "--workers", "1",
                       "--backend-store-uri", f"sqlite:///{store / 'mlflow.db'}",
                       "--serve-artifacts", "--artifacts-destination", (store / "artifacts").as_uri()],
            "worker": ["prefect", "worker", "start", "--pool", "ajuste"],
        }[name]  # fmt: skip
        self.running[name] = start(self.project, self.env, self.log(name), *command)
        if name != "worker":
            health = self.env["MLFLOW_TRACKING_URI"] if name == "mlflow" else self.api
            wait_for(lambda: httpx.get(f"{health}/health").status_code == 200, 180, self.log(name))

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def stop(self, name: str) -> None:
        stop(self.running.pop(name))

    def kill(self, name: str) -> None:
        """`kill -9` of the one process, without a word to what it started."""
        process = self.running.pop(name)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    def deploy(self) -> str:
        """`ajuste deploy`; then no schedule fires. Returns what it said."""
        command = [sys.executable, "-m", "ajuste.cli.main", "deploy"]
        done = subprocess.run(command, cwd=self.project, env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        for item in self.ask("/deployments/filter"):
            httpx.post(f"{self.api}/deployments/{item['id']}/pause_deployment").raise_for_status()
        return done.stdout

    def close(self) -> None:
        """End the flow runs that go on, then the worker and the servers."""
        for item in self.processes("prefect.engine"):
            os.killpg(item.pid, signal.SIGKILL)
        for name in ("worker", "mlflow", "prefect"):
            if name in self.running:
                self.stop(name)

    # --- what a test does and sees

    def commit(self, preset: str) -> None:
        """Merge this preset into params.yaml and commit it. What is trained from now on is what the test looks at."""
        self.since = time.time()
        (self.project / "presets" / "test.yaml").write_text(f"# Of the test.\n{preset}")
        ajuste(self.project, "preset", "test")
        run(self.project, "git", "add", "presets/test.yaml")
        run(self.project, "git", "commit", "--quiet", "--all", "--message", "Parameters of the test")

    def deployment(self, name: str) -> dict:
        """What the server knows of the deployment of this name, which is its flow's too."""
        found = httpx.get(f"{self.api}/deployments/name/{name}/{name}", timeout=30)
        return found.raise_for_status().json()

    def begin(self, flow: str = "adapt", **parameters: str) -> str:
        """Start a run of the flow's deployment; returns its id."""
        asked = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        made = httpx.post(f"{self.api}/deployments/{self.deployment(flow)['id']}/create_flow_run", json=asked)
        return made.raise_for_status().json()["id"]

    def ask(self, path: str, **body: object) -> list[dict]:
        return httpx.post(f"{self.api}{path}", json={"limit": 200, **body}, timeout=30).raise_for_status().json()

    def runs(self, flow: str = "adapt") -> list[dict]:
        """All runs of a flow, oldest first."""
        return self.ask("/flow_runs/filter", flows={"name": {"any_": [flow]}}, sort="EXPECTED_START_TIME_ASC")

    def states(self, flow_run: str) -> list[dict]:
        """The states of a run, oldest first: type, name, message, and `at` in seconds since the epoch."""
        found = httpx.get(f"{self.api}/flow_run_states/", params={"flow_run_id": flow_run}).raise_for_status().json()
        at = [datetime.fromisoformat(item["timestamp"].replace("Z", "+00:00")).timestamp() for item in found]
        return sorted(({**item, "at": when} for item, when in zip(found, at, strict=True)), key=lambda item: item["at"])

    def ended(self, flow_run: str, seconds: float) -> dict:
        """The last state of a run, once it is an end."""

        def end() -> dict | None:
            last = self.states(flow_run)[-1]
            return last if last["type"] in ENDS else None

        return wait_for(end, seconds, self.log("worker"))

    def completes(self, flow_run: str, seconds: float) -> dict:
        """The state Completed of a run; what its log says if it ends otherwise."""
        state = self.ended(flow_run, seconds)
        assert state["type"] == "COMPLETED", (state, self.logs(flow_run))
        return state

    def logs(self, flow_run: str) -> str:
        lines = self.ask("/logs/filter", logs={"flow_run_id": {"any_": [flow_run]}}, sort="TIMESTAMP_ASC")
        return "\n".join(line["message"] for line in lines) + self.log("worker").read_text()[-3000:]

    def processes(self, module: str) -> list[psutil.Process]:
        """The processes `python -m <module>` of this project's runs."""
        found = []
        for process in psutil.process_iter():
            try:
                if module in process.cmdline()[:4] and process.cwd().startswith(str(self.project)):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def engine(self, flow_run: str) -> psutil.Process:
        """The process in which a flow run goes on."""
        (found,) = [item for item in self.processes("prefect.engine")
                    if item.environ().get("PREFECT__FLOW_RUN_ID", "").replace("-", "") == flow_run.replace("-", "")]
        return found

    def trains(self, flow_run: str, checkpoints: int) -> int:
        """Wait until the running stage has made so many checkpoints; returns the step of the last one."""

        def reached() -> list[int]:
            last = self.states(flow_run)[-1]
            assert last["type"] not in ENDS, (last, self.logs(flow_run))
            whole = [int(file.parent.name.split("-")[1]) for file in self._trained("checkpoint-*/COMPLETE")]
            self.seen |= set(whole)
            return whole if len(self.seen) >= checkpoints else []

        self.seen: set[int] = set()
        return max(wait_for(reached, 420, self.log("worker")))

    def steps(self) -> list[int]:
        """How far the running stage is: the last step of its history, if it has one."""
        found = []
        for file in self._trained("history.jsonl"):
            with contextlib.suppress(FileNotFoundError):  # the stage has just ended
                lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("}\n")]
                found += [json.loads(line)["step"] for line in lines[-1:]]
        return found

    def stage_ends(self, seconds: float) -> None:
        """Wait until the running stage has ended; its checkpoints go when the result is recorded."""
        wait_for(lambda: self._trained("ENDED") or not self._trained("checkpoint-*/COMPLETE"), seconds,
                 self.log("worker"))  # fmt: skip

    def _trained(self, pattern: str) -> list[Path]:
        """Files of the stages that trained since the last `commit` and have not ended."""
        found = []
        for file in self.checkpoints.glob(f"*/{pattern}"):
            with contextlib.suppress(FileNotFoundError):  # older checkpoints go when there is a newer one
                if file.stat().st_mtime > self.since:
                    found.append(file)
        return found

    def recorded_once(self, stages: list[str], place: Path | None = None) -> None:
        """Each of these stages, with the inputs that dvc.lock of the place has now (the worktree of adapt's), is one
        finished MLflow run; no run is a twin."""
        found = [item for item in mlflow_runs(self.project) if "ajuste.stage_key" in item["tags"]]
        assert set(Counter(item["tags"]["ajuste.stage_key"] for item in found).values()) == {1}
        code = "import sys; from ajuste.tracking.project import lock; print(*[lock.stage_key(n) for n in sys.argv[1:]])"
        keys = run(place or self.place, sys.executable, "-c", code, *stages).stdout.split()
        status = {item["tags"]["ajuste.stage_key"]: item["status"] for item in found}
        assert [status.get(key) for key in keys] == ["FINISHED"] * len(stages)
