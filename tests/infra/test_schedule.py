"""infra/prefect.yaml with a real server and a real worker: a cron fires; two runs at once are each as if alone."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import httpx
import pytest
import yaml

from ajuste.cli.processes import free_port
from ajuste.core.stages import md5_of
from tests.infra.servers import T, start, stop, wait_for
from tests.made.projects import ROOT, ajuste, environment, mlflow_runs, run, tiny_project

# what the two presets say beside preset tiny; stages until UNTIL depend on it
PRESETS = {
    "short": {"encode": {"reviews": {"max_tokens": 32}}, "classify": {"frozen": {"steps": 3}}},
    "long": {"encode": {"reviews": {"max_tokens": 48}}, "classify": {"frozen": {"steps": 6}}},
}
UNTIL = "classify_frozen"
STAGES = ("base_encoder", "validate_reviews", "encode_reviews", "features_reviews", "classify_frozen")


def test_the_pins_without_which_schedules_or_runs_fail_silently() -> None:
    """prefect 3.8: with SQLAlchemy 2.1 no schedule ever fires; with fastapi 0.151 and later every flow run dies."""
    assert metadata.version("prefect").startswith("3.8.")
    assert [int(part) for part in metadata.version("sqlalchemy").split(".")[:2]] < [2, 1]
    assert [int(part) for part in metadata.version("fastapi").split(".")[:2]] < [0, 151]
    pinned = (ROOT / "pyproject.toml").read_text()
    assert '"sqlalchemy>=2.0,<2.1"' in pinned and '"fastapi>=0.139,<0.151"' in pinned


def test_the_deployments_name_flows_that_exist_and_hold_no_hyper_parameter() -> None:
    deployments = yaml.safe_load((ROOT / "infra" / "prefect.yaml").read_text())["deployments"]
    crons = {item["name"]: [schedule["cron"] for schedule in item["schedules"]] for item in deployments}
    assert crons == {"adapt": ["0 2 * * *"], "reproduce": ["0 5 * * 0"], "drift": ["30 * * * *"], "recover": []}
    for item in deployments:
        path, name = item["entrypoint"].split(":")
        assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), path
        assert item["parameters"] == {}
        if item["schedules"]:
            assert item["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
            assert list(item["pull"][-1]) == ["flows.late.cancel_late"]
    adapt = deployments[0]
    make, enter, _ = (next(iter(step.values())) for step in adapt["pull"])
    place, env = "{{ $AJUSTE_HOME }}/.prefect", adapt["work_pool"]["job_variables"]["env"]
    assert make["script"].endswith('worktree.py" adapt HEAD')
    assert enter == {"directory": f"{place}/worktrees/adapt"}
    assert env["AJUSTE_HOME"] == f"{place}/homes/adapt" and env["PYTHONPATH"] == f"{place}/worktrees/adapt"
    assert int(env["PREFECT_RUNNER_HEARTBEAT_FREQUENCY"]) >= 30, "Prefect takes no less"


class Server:
    """A project on preset tiny with a Prefect server of its own; worker and deployments on request."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.project = folder, tiny_project(folder / "ajuste")
        port = free_port(0)
        self.api = f"http://127.0.0.1:{port}/api"
        self.env = environment(self.project) | {
            "PREFECT_HOME": str(self.project / ".prefect"),
            "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
        }
        self.started = [self._start("server", "prefect", "server", "start", "--port", str(port))]

    def _start(self, name: str, *command: str) -> subprocess.Popen:
        return start(self.project, self.env, self.folder / f"{name}.log", *command)

    def wait(self, condition: Callable[[], T], seconds: float) -> T:
        """What the condition returns when it is true; if that is never, what all logs say."""
        try:
            return wait_for(condition, seconds, self.folder / "server.log")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def ajuste(self, *args: str) -> str:
        """What a command prints that is pointed at the server."""
        done = subprocess.run([sys.executable, "-m", "ajuste.cli.main", *args], cwd=self.project, env=self.env,
                              capture_output=True, text=True, timeout=600)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def worker(self) -> None:
        self.started.append(self._start("worker", "prefect", "worker", "start", "--pool", "ajuste"))

    def deployment(self, name: str) -> dict:
        return httpx.get(f"{self.api}/deployments/name/adapt/{name}").raise_for_status().json()

    def runs(self) -> list[dict]:
        """All flow runs that are not in the future; none of them may have failed."""
        asked = {"sort": "EXPECTED_START_TIME_ASC", "limit": 50}
        found = httpx.post(f"{self.api}/flow_runs/filter", json=asked).raise_for_status().json()
        bad = [item["state"] for item in found if item["state"]["type"] in ("FAILED", "CRASHED")]
        assert not bad, (bad, self.logs())
        return found

    def logs(self) -> str:
        lines = httpx.post(f"{self.api}/logs/filter", json={"limit": 200, "sort": "TIMESTAMP_DESC"}).json()
        files = "\n".join(f"{file.name}: {file.read_text()[-2000:]}" for file in self.folder.glob("*.log"))
        return "\n".join(line["message"] for line in reversed(lines)) + files

    def stop(self) -> None:
        for process in reversed(self.started):  # the worker before its server
            stop(process)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    try:
        made.wait(lambda: httpx.get(f"{made.api}/health").status_code == 200, 180)
        yield made
    finally:
        made.stop()


@pytest.mark.slow
def test_a_cron_fires_adapt_in_a_worktree_of_the_committed_revision(server: Server) -> None:
    project = server.project
    said = server.ajuste("deploy")
    assert all(name in said for name in ("adapt/adapt", "reproduce/reproduce", "drift/drift", "recover/recover"))
    assert re.search(r"adapt/adapt +next run: \d{4}-\d\d-\d\d 02:00 UTC", said), said
    assert said == server.ajuste("deploy"), "deploying again changes nothing"

    adapt = server.deployment("adapt")
    schedule = f"{server.api}/deployments/{adapt['id']}/schedules/{adapt['schedules'][0]['id']}"
    httpx.patch(f"{server.api}/deployments/{adapt['id']}", json={"parameters": {"until": "base_encoder"}})
    every_minute = {"cron": "* * * * *", "timezone": "UTC"}
    httpx.patch(schedule, json={"active": True, "schedule": every_minute}).raise_for_status()
    (project / "flows" / "pipeline.py").write_text("raise SystemExit('an edit nobody committed')\n")
    server.worker()

    done = server.wait(lambda: next((i for i in server.runs() if i["state"]["type"] == "COMPLETED"), None), 420)
    assert done["auto_scheduled"] and done["parameters"]["until"] == "base_encoder"
    place = project / ".prefect" / "worktrees" / "adapt"
    assert (place / "artifacts" / "base" / "encoder" / "base.json").exists()
    assert not (project / "artifacts").exists(), "the main checkout is left alone"
    assert (project / ".prefect" / "homes" / "adapt" / ".state" / "base_encoder.json").exists()
    assert not (project / ".state").exists() and not (project / ".checkpoints").exists()
    assert run(place, "git", "rev-parse", "HEAD").stdout == run(project, "git", "rev-parse", "HEAD").stdout
    stages = [item["tags"].get("ajuste.stage") for item in mlflow_runs(project)]
    assert stages.count("base_encoder") == 1
    assert "adapt/adapt" in server.ajuste("status")


@pytest.mark.slow
def test_two_runs_at_once_are_each_as_if_alone_and_leave_the_checkout_as_it_was(server: Server) -> None:
    project = server.project
    for name, content in PRESETS.items():
        (project / "presets" / f"{name}.yaml").write_text(f"# {name} reviews.\n{yaml.safe_dump(content)}")
    run(project, "git", "add", "presets")
    run(project, "git", "commit", "--quiet", "--message", "Presets")
    for name in PRESETS:
        assert f"adapt/adapt-{name}" in server.ajuste("deploy", "--preset", name)

    # what somebody is in the middle of: a broken edit, one that is staged and edited further, a new file
    (project / "flows" / "pipeline.py").write_text("raise SystemExit('an edit nobody committed')\n")
    (project / "docs" / "data.md").write_text("Staged.\n")
    run(project, "git", "add", "docs/data.md")
    (project / "docs" / "data.md").write_text("Staged, then edited.\n")
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("max_tokens: 64", "max_tokens: 9"))
    (project / "notes.txt").write_text("Mine.\n")
    before = checkout(project)
    assert "M  " not in before["status"] and "MM docs/data.md" in before["status"]

    for name in PRESETS:
        asked = {"parameters": {"until": UNTIL}, "state": {"type": "SCHEDULED"}}
        place = f"{server.api}/deployments/{server.deployment(f'adapt-{name}')['id']}/create_flow_run"
        httpx.post(place, json=asked).raise_for_status()
    server.worker()

    def both() -> list[dict] | None:
        ended = [item for item in server.runs() if item["state"]["type"] == "COMPLETED"]
        return ended if len(ended) == len(PRESETS) else None

    one, other = server.wait(both, 1500)
    assert max(one["start_time"], other["start_time"]) < min(one["end_time"], other["end_time"]), "one after the other"
    assert checkout(project) == before

    refs = run(project, "git", "for-each-ref", "--format=%(refname)", "refs/ajuste/runs").stdout.split()
    kept = {yaml.safe_load(run(project, "git", "show", f"{ref}:params.yaml").stdout)["encode"]["reviews"]["max_tokens"]:
            stages_of(run(project, "git", "show", f"{ref}:dvc.lock").stdout) for ref in refs}  # fmt: skip
    assert set(kept) == {32, 48} and len(refs) == 2
    for name, content in PRESETS.items():
        place = project / ".prefect" / "worktrees" / f"adapt-{name}"
        made = stages_of((place / "dvc.lock").read_text())
        tokens, steps = content["encode"]["reviews"]["max_tokens"], content["classify"]["frozen"]["steps"]
        assert made["encode_reviews"]["params"]["params.yaml"]["encode.reviews"]["max_tokens"] == tokens
        assert made["classify_frozen"]["params"]["params.yaml"]["classify.frozen"]["steps"] == steps
        assert made == kept[tokens] == alone(project, server.folder / name, name)
        for stage in STAGES:
            for out in made[stage]["outs"]:
                assert md5_of(place / out["path"]) == out["md5"], f"{name}: {out['path']}"

    recorded = [item for item in mlflow_runs(project) if item["tags"].get("ajuste.stage") in STAGES]
    assert {item["status"] for item in recorded} == {"FINISHED"}
    keys = [item["tags"]["ajuste.stage_key"] for item in recorded]
    assert len(keys) == len(set(keys)) == 2 + 2 * 3, "what both runs need is recorded once, what differs once for each"


def checkout(project: Path) -> dict[str, str]:
    """All that a person has in the checkout: files as they are, the index, the branch, the raw data."""
    tracked = run(project, "git", "ls-files", "--stage").stdout
    names = run(project, "git", "ls-files").stdout.split("\n")
    files = {name: md5_of(project / name) for name in (*names, "notes.txt") if name and (project / name).is_file()}
    return {
        "status": run(project, "git", "status", "--porcelain").stdout,
        "index": tracked + run(project, "git", "diff", "--cached").stdout,
        "files": str(files),
        "branches": run(project, "git", "for-each-ref", "refs/heads", "refs/stash").stdout,
        "head": (project / ".git" / "HEAD").read_text(),
        "data": md5_of(project / "data"),
        "results": str(sorted(name for name in os.listdir(project) if name in ("artifacts", ".state", ".checkpoints"))),
    }


def alone(project: Path, clone: Path, preset: str) -> dict:
    """The same preset in a clone with a cache and a home of its own, by plain `dvc repro`; the stages of dvc.lock."""
    run(project, "git", "clone", "--quiet", ".", str(clone))
    ajuste(clone, "preset", preset)
    ajuste(clone, "data", "pull")
    run(clone, sys.executable, "-P", "-m", "dvc", "repro", "--force", UNTIL, timeout=1200)
    return stages_of((clone / "dvc.lock").read_text())


def stages_of(lock: str) -> dict:
    return {name: entry for name, entry in yaml.safe_load(lock)["stages"].items() if name in STAGES}
