"""After a downtime of the worker one run catches up; the others that were due meanwhile are cancelled."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.infra.servers import Deployed, wait_for


@pytest.fixture
def deployed(tmp_path: Path) -> Iterator[Deployed]:
    """The servers, and the deployments without a worker."""
    found = Deployed(tmp_path)
    try:
        found.start("prefect")
        found.start("mlflow")
        found.deploy()
        yield found
    finally:
        found.close()


@pytest.mark.slow
def test_of_the_late_runs_one_runs(deployed: Deployed) -> None:
    drift = deployed.deployment("drift")
    schedule = f"{deployed.api}/deployments/{drift['id']}/schedules/{drift['schedules'][0]['id']}"
    every_minute = {"active": True, "schedule": {"cron": "* * * * *", "timezone": "UTC"}}
    httpx.post(f"{deployed.api}/deployments/{drift['id']}/resume_deployment", timeout=30).raise_for_status()
    httpx.patch(schedule, json=every_minute, timeout=30).raise_for_status()

    def states(kind: str) -> list[dict]:
        return [item for item in deployed.runs("drift") if item["state"]["name"] == kind]

    wait_for(lambda: len(states("Late")) >= 3, 360, deployed.log("prefect"))
    httpx.patch(schedule, json={**every_minute, "active": False}, timeout=30).raise_for_status()
    waiting = {item["id"] for item in states("Late")}
    deployed.start("worker")

    def over() -> list[dict]:
        ours = [item for item in deployed.runs("drift") if item["id"] in waiting]
        assert not any(item["state"]["type"] in ("FAILED", "CRASHED") for item in ours), [
            deployed.logs(item["id"]) for item in ours
        ]
        return ours if all(item["state"]["type"] in ("COMPLETED", "CANCELLED") for item in ours) else []

    ended = wait_for(over, 300, deployed.log("worker"))
    ran = [item for item in ended if item["state"]["type"] == "COMPLETED"]
    assert len(ran) == 1 and len(ended) >= 3
    for item in ended:
        if item not in ran:
            said = item["state"]["message"]
            assert said in (f"late: {ran[0]['name']} does its work", "Deployment concurrency limit reached."), said
