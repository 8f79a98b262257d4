"""Nights without anyone watching, all of it real: PostgreSQL, Prefect, MLflow, worker, cron, model server; preset tiny.

    1  the schedule fires         three classifiers are registered, the best passes the gate and becomes champion
    2  it fires again             nothing is new: no run, no version
    3  more tickets, committed    a better challenger is made, passes and replaces the champion; the server follows
    4  a quarter of the labels    a new challenger is made from them, the gate refuses it and the champion stays
       is dealt out anew
"""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from ajuste.cli import logins
from tests.made.projects import ajuste, environment, run, tiny_project
from tests.night.tickets import shuffled, tickets, write

NAME = "tickets-classifier"
# The classifiers can learn from tickets; RLHF cannot, so the nights end where they are judged.
UNTIL = "evaluate_classify"
PRESET = """
# Tickets instead of reviews, all of them, with a learning rate that suits a random model.
validate:
  reviews: {sample: 1.0}
encode:
  reviews:
    max_tokens: 32
    rows: {train: null, validation: null, test: null}
classify:
  full: {pooling: mean, lr: 3.0e-4, epochs: 4, patience: 8}
  lora: {pooling: mean, lr: 1.0e-3, epochs: 4, patience: 8}
"""
FIRST, MORE = 700, 1500  # tickets: an accuracy of about 0.85, then 0.95
SECONDS = 1200  # of a night on two busy cores; on quiet ones a quarter of it

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")),
        reason="PostgreSQL is not installed (`make system`): the nights are NOT TESTED",
    ),
]


def stack(project: Path, verb: str) -> subprocess.CompletedProcess[str]:
    ports = {f"AJUSTE_STACK_{name}_PORT": "0" for name in ("POSTGRES", "PREFECT", "MLFLOW", "MODELS")}
    env = environment(project) | {"PREFECT_WORKER_QUERY_SECONDS": "2"} | ports
    line = [sys.executable, "-m", "infra.stack", verb]
    return subprocess.run(line, cwd=project, env=env, capture_output=True, text=True, timeout=900)


class Night:
    """The project, and what its servers say over HTTP."""

    def __init__(self, project: Path) -> None:
        self.project = project
        known = json.loads((project / ".stack" / "pids.json").read_text())
        self.url = {name: f"http://127.0.0.1:{entry['port']}" for name, entry in known.items() if "port" in entry}
        settings = logins.read_env(project / ".stack")
        self.api, mlflow = settings["PREFECT_API_URL"], settings["MLFLOW_TRACKING_URI"]
        self.prefect = httpx.Client(auth=tuple(settings["PREFECT_API_AUTH_STRING"].split(":")), timeout=30)
        login = settings["MLFLOW_TRACKING_USERNAME"], settings["MLFLOW_TRACKING_PASSWORD"]
        self.mlflow = httpx.Client(base_url=f"{mlflow}/api/2.0/mlflow", auth=login, timeout=60)
        self.deployment = self.prefect.get(f"{self.api}/deployments/name/adapt/adapt").raise_for_status().json()
        place = f"{self.api}/deployments/{self.deployment['id']}"
        self.prefect.patch(place, json={"parameters": {"until": UNTIL}}).raise_for_status()

    def schedule(self, active: bool) -> None:
        """Let adapt fire every minute, or not at all; all else of the deployment stays as it was deployed."""
        place = f"{self.api}/deployments/{self.deployment['id']}/schedules/{self.deployment['schedules'][0]['id']}"
        cron = {"cron": "* * * * *", "timezone": "UTC"}
        self.prefect.patch(place, json={"active": active, "schedule": cron}).raise_for_status()

    def fires(self, seconds: float) -> dict:
        """The next run that the schedule fires, when it is over; no other one is left behind."""
        before = {item["id"] for item in self.flow_runs()}
        self.schedule(True)
        first, deadline = None, time.monotonic() + seconds
        while time.monotonic() < deadline:
            ours = [item for item in self.flow_runs() if item["id"] not in before and item["auto_scheduled"]]
            # while one is under way the runs of the minutes after it are cancelled; Prefect gives these a start too
            began = [item for item in ours if item["start_time"] and item["state"]["type"] != "CANCELLED"]
            if began and first is None:
                first = min(began, key=lambda item: item["start_time"])["id"]
                self.schedule(False)
            done = next((item for item in ours if item["id"] == first), None)
            if done and done["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
                assert done["state"]["type"] == "COMPLETED", (done["state"], self.logs(first))
                return done
            time.sleep(2)
        raise AssertionError(f"no run of the schedule ended within {seconds} s: {self.logs(first)}")

    def flow_runs(self) -> list[dict]:
        asked = {"flow_runs": {"deployment_id": {"any_": [self.deployment["id"]]}}, "sort": "START_TIME_DESC"}
        return self.prefect.post(f"{self.api}/flow_runs/filter", json={**asked, "limit": 200}).raise_for_status().json()

    def logs(self, flow_run: str | None) -> str:
        asked = {"limit": 200, "sort": "TIMESTAMP_DESC"}
        if flow_run:
            asked["logs"] = {"flow_run_id": {"any_": [flow_run]}}
        lines = self.prefect.post(f"{self.api}/logs/filter", json=asked).json()
        worker = (self.project / ".stack" / "logs" / "worker.log").read_text()[-4000:]
        return "\n".join(line["message"] for line in reversed(lines)) + worker

    def versions(self) -> dict[int, dict[str, str]]:
        """Number -> tags of every version of the classifier."""
        asked = {"filter": f"name='{NAME}'", "max_results": 100}
        found = self.mlflow.get("/model-versions/search", params=asked).raise_for_status().json()
        return {
            int(item["version"]): {tag["key"]: tag["value"] for tag in item.get("tags", [])}
            for item in found.get("model_versions", [])
        }

    def aliases(self) -> dict[str, int]:
        found = self.mlflow.get("/registered-models/get", params={"name": NAME})
        model = found.raise_for_status().json()["registered_model"]
        return {item["alias"]: int(item["version"]) for item in model.get("aliases", [])}

    def runs(self) -> dict[str, dict[str, str]]:
        """Id -> tags of every run in MLflow."""
        experiments = self.mlflow.get("/experiments/search", params={"max_results": 100}).json()["experiments"]
        asked = {"experiment_ids": [item["experiment_id"] for item in experiments], "max_results": 1000}
        found = self.mlflow.post("/runs/search", json=asked).raise_for_status().json().get("runs", [])
        return {
            item["info"]["run_id"]: {tag["key"]: tag["value"] for tag in item["data"].get("tags", [])} for item in found
        }

    def all_versions(self) -> int:
        """Versions of all registered models."""
        found = self.mlflow.get("/model-versions/search", params={"max_results": 1000})
        return len(found.raise_for_status().json()["model_versions"])

    def answers(self, version: int, seconds: float) -> None:
        """The model server answers with this version, at the latest after so many seconds."""
        deadline = time.monotonic() + seconds
        body = {"text": "the story was a tedious waste", "model": NAME}
        while True:
            with contextlib.suppress(httpx.HTTPError):
                said = httpx.post(f"{self.url['models']}/classify", json=body, timeout=60).raise_for_status().json()
                if int(said["version"]) == version:
                    return
            assert time.monotonic() < deadline, (said, (self.project / ".stack/logs/models.log").read_text()[-2000:])
            time.sleep(1)


@pytest.fixture
def night() -> Iterator[Night]:
    """A clone on preset tiny with tickets, committed, and its stack; both gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="ajuste-night-"))
    folder.chmod(0o755)  # PostgreSQL's own user must get in
    project = folder / "ajuste"
    try:
        tiny_project(project)
        (project / "presets" / "night.yaml").write_text(PRESET)
        ajuste(project, "preset", "night")
        add(project, "first", tickets(FIRST, seed=1))
        commit(project, "Tickets")
        done = stack(project, "up")
        assert done.returncode == 0, done.stdout + done.stderr
        yield Night(project)
    finally:
        if project.exists():
            stack(project, "down")
        shutil.rmtree(folder)


def add(project: Path, name: str, rows: list[tuple[str, str]], *options: str) -> None:
    """As a person does it."""
    file = write(project.parent / f"{name}.csv", rows)
    ajuste(project, "data", "add", "tickets", str(file), "--use", *options)


def commit(project: Path, message: str) -> None:
    run(project, "git", "add", "presets")
    run(project, "git", "commit", "--quiet", "--all", "--message", message)


def stages_of(runs: dict[str, dict[str, str]]) -> list[str]:
    return sorted(tags["ajuste.stage"] for tags in runs.values() if "ajuste.stage_key" in tags)


def test_four_nights(night: Night, tmp_path: Path) -> None:
    fired = night.fires(SECONDS)
    first, aliases, champion = night.versions(), night.aliases(), night.aliases()["champion"]
    assert len(first) == 3 and champion == aliases["challenger"] and champion in first
    assert json.loads(first[champion]["gate"])["passed"]
    runs, versions = night.runs(), night.all_versions()
    stages = list(yaml.safe_load((night.project / "dvc.yaml").read_text())["stages"])
    assert stages_of(runs) == sorted(stages[: stages.index(UNTIL) + 1])
    done = stack(night.project, "up")  # now there is something that the model server can answer with
    assert done.returncode == 0 and "models    started" in done.stdout, done.stdout + done.stderr
    night = Night(night.project)
    night.answers(champion, 60)

    night.fires(SECONDS)
    assert night.runs() == runs and night.all_versions() == versions and night.aliases() == aliases

    more = tickets(MORE, seed=2)
    add(night.project, "more", more)
    commit(night.project, "More tickets")
    night.fires(SECONDS)
    third, aliases = night.versions(), night.aliases()
    challenger = aliases["challenger"]
    assert len(third) == 6 and challenger not in first
    said = json.loads(third[challenger]["gate"])
    assert said["passed"] and said["champion"] == str(champion), said
    assert aliases["champion"] == challenger and aliases["previous"] == champion
    made = stages_of({key: tags for key, tags in night.runs().items() if key not in runs})
    assert "classify_full" in made and "base_encoder" not in made, made
    champion = challenger
    night.answers(champion, 60)

    # a quarter of all tickets
    add(night.project, "first", tickets(FIRST, seed=1), "--replace")
    add(night.project, "more", shuffled(more, (FIRST + MORE) / 4 / MORE, seed=3))
    commit(night.project, "Tickets with labels that somebody mixed up")
    night.fires(SECONDS)
    fourth, aliases = night.versions(), night.aliases()
    assert len(fourth) == 9 and aliases["challenger"] not in third
    said = json.loads(fourth[aliases["challenger"]]["gate"])
    assert not said["passed"] and said["champion"] == str(champion), said
    assert [rule["name"] for rule in said["rules"] if not rule["passed"]] == ["champion accuracy"], said
    assert aliases["champion"] == champion
    night.answers(champion, 30)

    # the runs worked in a worktree of their own
    assert run(night.project, "git", "status", "--porcelain").stdout == ""
    enter, mlflow = re.findall(r'href="([^"]+)"', (night.project / ".stack" / "pages.html").read_text())
    picture(f"{night.url['prefect']}/runs/flow-run/{fired['id']}", tmp_path / "prefect.png", enter)
    picture(f"{mlflow}#/models/{NAME}", tmp_path / "mlflow.png")


def picture(url: str, file: Path, enter: str = "") -> None:
    """The page as a person sees it, who has been at `enter` before, if Chromium is here."""
    if shutil.which("chromium") is None:
        return
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1400,1000"]
    with tempfile.TemporaryDirectory() as profile:
        command = ["chromium", *options, "--virtual-time-budget=30000", f"--user-data-dir={profile}"]
        for last in [["--dump-dom", enter]] * bool(enter) + [[f"--screenshot={file}", url]]:
            subprocess.run([*command, *last], capture_output=True, timeout=180)
    assert file.stat().st_size > 10_000
