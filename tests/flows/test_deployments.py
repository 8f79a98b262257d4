"""Deployments on a real (ephemeral) server: what is late is cancelled, what `ajuste status` shows; twins of `adapt`."""

from datetime import UTC, datetime, timedelta

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.states import Completed, Failed, Running

from ajuste.cli.project import deployments
from ajuste.core.errors import UsageError
from flows.deploy import POOLS, _settings, deploy
from flows.late import cancel_late


@flow(name="night")
def night() -> None:
    pass


def scheduled(client: SyncPrefectClient, name: str) -> str:
    """A deployment due every hour, with the runs of the last three hours and the next two; none has begun."""
    hourly = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 * * * *", timezone="UTC"), active=True)
    made = client.create_deployment(client.create_flow(night), name, schedules=[hourly])
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    span = {"start_time": (hour - timedelta(hours=2)).isoformat(), "end_time": (hour + timedelta(hours=2)).isoformat()}
    client.request("POST", f"/deployments/{made}/schedule", json={**span, "min_runs": 5, "max_runs": 5})
    return made


def runs_of(client: SyncPrefectClient, deployment: str) -> list:
    found = [run for run in client.read_flow_runs(limit=200) if run.deployment_id == deployment]
    return sorted(found, key=lambda run: run.expected_start_time)


def test_late_runs_of_the_schedule_are_cancelled_and_no_others(
    prefect_harness: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with get_client(sync_client=True) as client:
        mine, other = scheduled(client, "late"), scheduled(client, "other")
        due = [run for run in runs_of(client, mine) if run.expected_start_time <= datetime.now(UTC)]
        assert len(due) == 3 and len(runs_of(client, mine)) == 5 and all(run.auto_scheduled for run in due)
        asked = client.create_flow_run_from_deployment(mine)  # by a person
        client.set_flow_run_state(due[0].id, Running(), force=True)
        monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(due[0].id))
        assert cancel_late() == {"cancelled": 2}
        states = {run.id: run.state for run in runs_of(client, mine)}
        assert [states[run.id].type.value for run in due] == ["RUNNING", "CANCELLED", "CANCELLED"]
        assert states[due[1].id].message == f"late: {due[0].name} does its work"
        assert states[asked.id].is_scheduled() and sum(state.is_scheduled() for state in states.values()) == 3
        assert all(run.state.is_scheduled() for run in runs_of(client, other)), "another deployment is left alone"
        assert cancel_late() == {"cancelled": 0}

        alone = client.create_flow_run(night)
        monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(alone.id))
        assert cancel_late() == {"cancelled": 0}, "a run without a deployment has none that are late"


def test_status_shows_the_next_and_the_last_run_and_why_it_failed(prefect_harness: None) -> None:
    with get_client(sync_client=True) as client:
        made = scheduled(client, "shown")
        first, second, third, *coming = runs_of(client, made)
        client.set_flow_run_state(first.id, Completed(), force=True)
        client.set_flow_run_state(second.id, Failed(message="stage `reward`: no pairs\nand more"), force=True)
        client.set_flow_run_state(third.id, Running(), force=True)
        client.set_flow_run_state(third.id, Completed(message="All states completed."), force=True)
        client.create_deployment(client.create_flow(night), "silent")
        api = str(client.api_url).rstrip("/")
        found = {item.name: item for item in deployments.deployments(api, 30)}
        assert found["night/shown"].next == coming[0].expected_start_time
        rows = {row[0]: row[1:] for row in deployments.lines(list(found.values()))}
        assert rows["night/shown"][2] == "Completed", "of a run that ended well no message is shown"
        assert rows["night/shown"][0] == f"{coming[0].expected_start_time:%Y-%m-%d %H:%M} UTC"
        assert rows["night/silent"] == ("when asked for", "none", "")
        client.set_flow_run_state(third.id, Failed(message="stage `reward`: no pairs\nand more"), force=True)
        [row] = deployments.lines([item for item in deployments.deployments(api, 30) if item.name == "night/shown"])
        assert row[3] == "Failed: stage `reward`: no pairs"


def test_a_server_that_does_not_answer_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert deployments.server() is None


def test_a_preset_or_revision_makes_a_twin_of_adapt_that_no_schedule_starts() -> None:
    plain = _settings("ajuste", "", "HEAD")["deployments"]
    names = [item["name"] for item in plain]
    for preset, revision, name, words in [
        ("full", "HEAD", "adapt-full", "adapt-full HEAD full"),
        ("", "v1.2", "adapt-v1.2", "adapt-v1.2 v1.2"),
        ("tiny", "origin/main", "adapt-tiny-origin-main", "adapt-tiny-origin-main origin/main tiny"),
    ]:
        *same, twin = _settings("ajuste-docker", preset, revision)["deployments"]
        assert [item["name"] for item in same] == names and twin["name"] == name
        assert {item["work_pool"]["name"] for item in (*same, twin)} == {"ajuste-docker"}
        make, enter, late = (next(iter(step.values())) for step in twin["pull"])
        assert make["script"].endswith(f'infra/worktree.py" {words}') and enter["directory"].endswith(
            f"worktrees/{name}"
        )
        env = twin["work_pool"]["job_variables"]["env"]
        assert env["AJUSTE_HOME"].endswith(f"/homes/{name}") and env["PYTHONPATH"].endswith(f"/worktrees/{name}")
        assert twin["schedules"] == [] and twin["entrypoint"] == plain[0]["entrypoint"]


def test_a_wrong_pool_preset_or_revision_is_one_line_before_anything_is_made() -> None:
    for arguments, said in [
        (("cloud",), ", ".join(POOLS)),
        (("process", "huge"), "`huge`"),
        (("process", "", "v0"), "v0"),
    ]:
        with pytest.raises(UsageError, match=said) as error:
            deploy(*arguments)
        assert "\n" not in str(error.value)
