"""The gate in a flow: a refusal completes, a person is asked where one can answer, and every end is said."""

import threading
import time

import pytest

from ajuste.core.imports import ROOT
from ajuste.core.params import read_yaml, typed
from ajuste.judging.verdicts.gate import GateConfig, Rule
from ajuste.tracking.verdicts.gate import Verdict

VALUES = read_yaml(ROOT / "policy.yaml")["gate"]


def verdict(passed: bool = True) -> Verdict:
    rule = Rule("champion accuracy", passed, 0.01, 0.0, "0.8100 against 0.8000 of champion 1")
    return Verdict("a-classifier", "2", "1", [rule], "2026-01-01 12:00")


@pytest.fixture
def gated(prefect_harness: None, monkeypatch: pytest.MonkeyPatch):
    """run(verdict, **config): the gate's step in a flow; what was acted on is in `run.acted`."""
    from prefect import flow

    from flows import _gate
    from flows._steps import Plan

    acted = []

    def act(found: Verdict, config: GateConfig, why: str = "", who: str = "gate") -> str:
        acted.append((found.passed, config.mode, why, who))
        return "done"

    def run(found: Verdict, parent: str | None = "parent", names: tuple = ("a-classifier",), **config) -> list[str]:
        made = typed(GateConfig, {**VALUES, **config}, "gate")
        monkeypatch.setattr(_gate.judging, "config_of", lambda: made)
        monkeypatch.setattr(_gate.judging, "challengers", lambda config, new: [found.name] if new else [])
        monkeypatch.setattr(_gate.judging, "judge", lambda name, config: found)
        monkeypatch.setattr(_gate.judging, "act", act)
        return flow(name="test-gate")(lambda: _gate.gate(Plan(set(), set(), None, parent, names=set(names))))()

    run.acted = acted
    return run


def test_a_refusal_completes_and_is_said_with_every_rule(gated, capsys) -> None:
    from prefect.client.orchestration import get_client

    assert gated(verdict(False)) == ["done"] and gated.acted == [(False, "enforce", "", "gate")]
    said = capsys.readouterr().err
    assert "a-classifier/2 is refused by the gate (champion accuracy)" in said and "FAIL  champion accuracy" in said
    with get_client(sync_client=True) as client:
        found = client.request("POST", "/artifacts/filter", json={}).json()
    mine = [item for item in found if item["key"] == "gate-a-classifier"]
    assert mine and any("| champion accuracy | **FAIL** | 0.01 | 0 |" in item["data"] for item in mine)


def test_off_early_and_quiet_runs_judge_nothing(gated) -> None:
    for options in ({"mode": "off"}, {"names": ()}, {"names": ("b-classifier",)}, {"parent": None}):
        assert gated(verdict(), **options) == []
    assert gated.acted == []


def test_without_a_server_that_stays_nobody_waits(gated, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import _gate

    monkeypatch.setattr(_gate, "PREFECT_API_URL", type("Unset", (), {"value": staticmethod(lambda: None)}))
    (done,) = gated(verdict(), approval=True)
    assert "waits for a person" in done and "ajuste promote a-classifier/2" in done and gated.acted == []


@pytest.mark.slow
@pytest.mark.parametrize("promote", [True, False])
def test_a_person_resumes_the_paused_run(gated, promote: bool) -> None:
    from prefect.client.orchestration import get_client

    answered = []

    def answer() -> None:
        from prefect.settings import PREFECT_API_URL

        with get_client(sync_client=True) as client:
            deadline = time.monotonic() + 90
            while time.monotonic() < deadline and not answered:
                paused = [run for run in client.read_flow_runs() if run.state and run.state.is_paused()]
                for run in paused:
                    response = client.request("POST", "/flow_runs/{id}/resume", path_params={"id": run.id}, json={
                        "run_input": {"promote": promote, "who": "ana", "why": "read it"}})
                    answered.append((response.status_code, PREFECT_API_URL.value()))
                time.sleep(0.5)

    import contextvars

    thread = threading.Thread(target=contextvars.copy_context().run, args=(answer,))
    thread.start()
    try:
        (done,) = gated(verdict(), approval=True)
    finally:
        thread.join(100)
    assert answered
    if promote:
        assert done == "done" and gated.acted == [(True, "enforce", "read it", "ana")]
    else:
        assert "ana said no, read it" in done and gated.acted == []


@pytest.mark.slow
def test_nobody_answers_and_the_champion_stays(gated) -> None:
    (done,) = gated(verdict(), approval=True, approval_hours=0.001)
    assert "nobody answered" in done and gated.acted == []
