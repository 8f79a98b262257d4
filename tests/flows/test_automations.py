"""The automations on a real (ephemeral) server: made once, updated in place; a crashed run is run again once."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from prefect import flow
from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.states import Crashed
from prefect.testing.utilities import prefect_test_harness

from flows import automations
from flows.recover import AGAIN, recover


@contextlib.contextmanager
def engine_of(flow_run: str) -> Iterator[None]:
    """A process that looks like the engine of a flow run, and sleeps."""
    code = "import time; time.sleep(600)"
    env = {**os.environ, "PREFECT__FLOW_RUN_ID": flow_run}
    process = subprocess.Popen([sys.executable, "-c", code, "prefect.engine"], env=env)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@flow(name="lost")
def lost(number: int = 0) -> int:
    return number


@pytest.mark.slow
def test_automations_are_made_once_and_a_crashed_run_is_run_again_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AJUSTE_WEBHOOK", "http://127.0.0.1:9/secret")
    with prefect_test_harness(server_startup_timeout=300), get_client(sync_client=True) as client:
        assert automations.apply(client) == [automations.LOST, automations.WEBHOOK]
        flow_id = client.create_flow(recover)
        client.create_deployment(flow_id, "recover")
        for _ in range(2):
            assert automations.apply(client) == [automations.LOST, automations.AGAIN, automations.WEBHOOK]
        found = client.request("POST", "/automations/filter", json={}).json()
        assert sorted(item["name"] for item in found) == sorted(
            [automations.LOST, automations.AGAIN, automations.WEBHOOK]
        )
        assert "secret" not in str(found)
        beat = Automation.read(name=automations.LOST)
        assert beat.trigger.within.total_seconds() == 90
        assert beat.actions[0].state == StateType.CRASHED

        deployment = client.create_deployment(client.create_flow(lost), "lost")
        first = client.create_flow_run_from_deployment(deployment, parameters={"number": 7})
        client.set_flow_run_state(first.id, Crashed(message=automations.GONE), force=True)
        with engine_of(str(first.id)):  # a server that was away has missed its beats
            assert "goes on" in recover.fn(str(first.id))
            assert client.read_flow_run(first.id).state.is_running()
        client.set_flow_run_state(first.id, Crashed(message=automations.GONE), force=True)
        for _ in range(2):
            recover.fn(str(first.id))
        runs = [run for run in client.read_flow_runs() if run.deployment_id == deployment and run.id != first.id]
        assert len(runs) == 1 and runs[0].parameters == {"number": 7} and AGAIN in runs[0].tags
        client.set_flow_run_state(runs[0].id, Crashed(), force=True)
        assert "not run again" in recover.fn(str(runs[0].id))
        assert len([run for run in client.read_flow_runs() if run.deployment_id == deployment]) == 2
