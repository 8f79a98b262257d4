"""What is lost or away while a deployed run trains, with real servers: the run, the worker, MLflow, Prefect.

Every test makes stage `classify_full` stale with a learning rate of its own; what comes before it is made once. The
stage takes a minute or so and makes a checkpoint an epoch. Run with -s, the tests print the seconds that they saw.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.recover import AGAIN
from tests.infra.servers import Deployed, wait_for
from tests.made.projects import ajuste, environment

pytestmark = pytest.mark.slow

LAST = "classify_full"
STAGES = ["base_encoder", "validate_reviews", "encode_reviews", "features_reviews", "classify_frozen", LAST]
LONG = "classify:\n  full: {{epochs: 25, evaluations: 1, patience: 100, lr: {}}}\n"
ENOUGH = 5  # checkpoints before something is killed
AWAY = 30  # seconds
LONGEST = 600  # seconds for a run on busy cores


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """The project with its servers; what precedes the trained stage has run."""
    made = Deployed(tmp_path_factory.mktemp("recovery"))
    try:
        made.start("prefect")
        made.start("mlflow")
        said = made.deploy()
        assert "ajuste-lost" in said and "ajuste-run-again" in said, said
        made.start("worker")
        made.completes(made.begin(until=STAGES[-2]), LONGEST)
        yield made
    finally:
        made.close()


@pytest.fixture(autouse=True)
def _worker(deployed: Deployed) -> None:
    for name in ("prefect", "mlflow", "worker"):
        if name not in deployed.running or deployed.running[name].poll() is not None:
            deployed.start(name)


@pytest.mark.parametrize("machine", ["the run alone", "the worker too"])
def test_a_killed_run_is_marked_crashed_and_runs_again_once_from_its_checkpoint(
    deployed: Deployed, machine: str, tmp_path: Path
) -> None:
    lr = {"the run alone": 4e-5, "the worker too": 5e-5}[machine]
    deployed.commit(LONG.format(lr))
    before = {item["id"] for item in deployed.runs()}
    first = deployed.begin(until=LAST)
    step = deployed.trains(first, ENOUGH)
    lost_worker = machine == "the worker too"
    if lost_worker:
        deployed.kill("worker")
    engine = deployed.engine(first)
    killed = time.time()
    os.killpg(os.getpgid(engine.pid), signal.SIGKILL)
    if lost_worker:
        deployed.start("worker")
    calm = Calm(tmp_path / "calm", deployed) if lost_worker else None

    crashed = deployed.ended(first, 300)
    assert crashed["type"] == "CRASHED"
    if lost_worker:  # a worker that lives sees the end of its process before the heartbeats are missed
        assert crashed["message"] == "no heartbeat: its process is gone"

    def again() -> str | None:
        new = (item for item in deployed.runs() if item["id"] not in before)
        return next((item["id"] for item in new if AGAIN in item["tags"]), None)

    second = wait_for(again, 180, deployed.log("worker"))
    lowest = step
    while deployed.states(second)[-1]["type"] in ("SCHEDULED", "PENDING", "RUNNING"):
        lowest = min([lowest, *deployed.steps()])
        time.sleep(0.3)
    done = deployed.completes(second, 10)
    began = next(item["at"] for item in deployed.states(second) if item["type"] == "RUNNING")
    print(f"\nkilled with {machine}: crashed after {crashed['at'] - killed:.0f} s, ran again after "
          f"{began - killed:.0f} s, done after {done['at'] - killed:.0f} s; step {step} was kept")  # fmt: skip

    assert lowest >= step, "it began from nothing"
    deployed.recorded_once(STAGES)
    if calm:
        assert (deployed.place / "dvc.lock").read_bytes() == calm.lock()
    wait_for(lambda: all(item["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED") for item in
                         deployed.runs("recover")), 120, deployed.log("worker"))  # fmt: skip
    assert {item["id"] for item in deployed.runs()} - before == {first, second}
    assert deployed.states(first)[-1]["type"] == "CRASHED"


class Calm:
    """An undisturbed run of the same commit in a clone of its own, while others wait."""

    def __init__(self, folder: Path, deployed: Deployed) -> None:
        subprocess.run(["git", "clone", "--quiet", str(deployed.project), str(folder)], check=True)
        ajuste(folder, "data", "pull")
        self.folder, self.log = folder, folder.with_suffix(".log")
        with self.log.open("w") as file:
            command = [sys.executable, "-m", "ajuste.cli.main", "run", "--until", LAST]
            self.process = subprocess.Popen(command, cwd=folder, env=environment(folder), stdout=file, stderr=file)

    def lock(self) -> bytes:
        assert self.process.wait(timeout=LONGEST) == 0, self.log.read_text()
        return (self.folder / "dvc.lock").read_bytes()


def test_a_run_outlives_its_worker_and_waits_for_mlflow(deployed: Deployed) -> None:
    deployed.commit(LONG.format(6e-5))
    before = {item["id"] for item in deployed.runs()}
    recovered = len(deployed.runs("recover"))
    only = deployed.begin(until=LAST)
    deployed.trains(only, ENOUGH)
    engine = deployed.engine(only)
    deployed.kill("worker")
    killed = time.time()
    deployed.start("worker")
    away = without(deployed, "mlflow")

    done = deployed.completes(only, LONGEST)
    print(f"\nworker killed: its run went on and completed after {done['at'] - killed:.0f} s; "
          f"MLflow was away for {away:.0f} s meanwhile")  # fmt: skip
    assert [item["type"] for item in deployed.states(only)].count("RUNNING") == 1
    deployed.recorded_once(STAGES)
    wait_for(lambda: not engine.is_running(), 60, deployed.log("worker"))
    time.sleep(10)  # five questions of the new worker for work
    assert {item["id"] for item in deployed.runs()} - before == {only}
    assert len(deployed.runs("recover")) == recovered


def test_a_run_waits_for_prefect(deployed: Deployed) -> None:
    deployed.commit(LONG.format(7e-5))
    before = {item["id"] for item in deployed.runs()}
    only = deployed.begin(until=LAST)
    deployed.trains(only, ENOUGH)
    away = without(deployed, "prefect")
    back = time.time()

    done = deployed.completes(only, LONGEST)
    print(f"\nPrefect's server away for {away:.0f} s: the run completed {done['at'] - back:.0f} s after it was back")
    deployed.recorded_once(STAGES)
    assert {item["id"] for item in deployed.runs()} - before == {only}


def without(deployed: Deployed, server: str) -> float:
    """A server is away for AWAY seconds and until the stage has trained, so that its end must wait; returns seconds."""
    deployed.stop(server)
    stopped = time.time()
    deployed.stage_ends(LONGEST)
    time.sleep(max(0.0, AWAY - (time.time() - stopped)))
    deployed.start(server)
    return time.time() - stopped


def test_mlflow_away_for_too_long_is_one_line_and_the_same_run_can_be_made_again(deployed: Deployed) -> None:
    deployed.commit(LONG.format(8e-5))
    # as `ajuste run`, with 15 s of patience in place of 10 minutes
    impatient = "from flows import _patience as p; p.PATIENCE = 15.0; from ajuste.cli.main import main; main()"
    log = deployed.log("impatient")
    with log.open("w") as file:
        command = [sys.executable, "-c", impatient, "run", "--until", LAST]
        # which `ajuste run` sets itself, before Prefect is imported
        env = deployed.env | {"PREFECT_LOGGING_LEVEL": "CRITICAL"}
        process = subprocess.Popen(command, cwd=deployed.project, env=env, stdout=file, stderr=file)
    checkpoints = deployed.project / ".checkpoints"
    wait_for(lambda: list(checkpoints.glob("*/checkpoint-*/COMPLETE")) or process.poll() is not None, LONGEST, log)
    assert process.poll() is None, log.read_text()
    deployed.stop("mlflow")
    assert process.wait(timeout=LONGEST) == 1, log.read_text()
    said = log.read_text()
    print(f"\nMLflow away for too long: {said.splitlines()[-1]}")
    assert "did not answer for 15 s: start it and run again; what is done stays done" in " ".join(said.split())
    assert "Traceback" not in said

    deployed.start("mlflow")
    again = [sys.executable, "-m", "ajuste.cli.main", "run", "--until", LAST]
    done = subprocess.run(again, cwd=deployed.project, env=deployed.env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    deployed.recorded_once(STAGES, deployed.project)
