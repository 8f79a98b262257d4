"""From logged requests to a run of `adapt`: windows are recorded once, the rule asks once, the event is answered.

The models are stand-ins (a Baseline that embeds and predicts by rule); DVC's artifacts, MLflow, the request log and, in
the slow test, Prefect's server with its automation are real.
"""

import json
import random
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from ajuste.core.errors import DataError, UsageError
from ajuste.core.home import home
from ajuste.core.imports import ROOT
from ajuste.judging.policy import policy
from ajuste.judging.verdicts.drift import DriftConfig
from ajuste.tracking.registry.version import Version
from ajuste.tracking.verdicts import drift as windows

PARAMS = {"window": 40, "reference_rows": 80, "alpha": 0.01, "correction": "holm", "permutations": 499,
          "min_length": 0.15, "min_vocabulary": 0.05, "min_classes": 0.2, "min_embeddings": 0.1, "drifted": 2,
          "of": 5}  # fmt: skip
USUAL, OTHER = [f"word{i}" for i in range(100)], [f"wort{i}" for i in range(100)]


def texts(rows: int, seed: int, drifted: bool = False) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(OTHER if drifted else USUAL, k=rng.randint(5, 15))) for _ in range(rows)]


class Data:
    """A Baseline whose model is a rule."""

    def __init__(self, version: Version, config: object) -> None:
        self.version, self.config = version, config
        self.vocabulary = frozenset(USUAL)
        texts_ = texts(80, 0)
        self.sample = windows.Sample(texts_, self.predict(texts_), self.embed(texts_))

    def predict(self, texts: list[str]) -> list[str]:
        return ["positive" if len(text) % 2 else "negative" for text in texts]

    def embed(self, texts: list[str]) -> np.ndarray:
        return np.array([[len(text), text.count("t"), text.count("1")] for text in texts], float)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home for all tests of this file: a store's first use takes seconds."""
    return tmp_path_factory.mktemp("drift")


@pytest.fixture
def requests(place: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """write(windows): appends whole windows to the log of the test's own model, True a drifted one."""
    name = f"{request.node.name.replace('_', '')[:40]}-classifier"
    monkeypatch.setenv("AJUSTE_HOME", str(place))
    monkeypatch.chdir(place)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home.cache_clear()
    Path("policy.yaml").write_text(yaml.safe_dump({"drift": PARAMS}))
    served = {"version": "1"}

    def version(name: str) -> Version:
        return Version(name, served["version"], "champion", place, {}, None)

    monkeypatch.setattr(windows.registry, "resolve", version)
    monkeypatch.setattr(windows.registry, "find", version)
    monkeypatch.setattr(windows.registry, "names", lambda: [name, f"{name}-adapter", "ratings-reward"])
    monkeypatch.setattr(windows, "baseline", Data)
    count = iter(range(1, 1000))

    def write(*drifted: bool, rows: int = 40) -> None:
        folder = place / ".requests"
        folder.mkdir(exist_ok=True)
        with (folder / f"{name}.jsonl").open("a") as file:
            for shifted in drifted:
                seed = next(count)
                for i, text in enumerate(texts(rows, seed, shifted)):
                    label = "positive" if len(text) % 2 else "negative"
                    file.write(json.dumps({"time": f"2026-01-01T{seed:02d}:00:{i:02d}Z", "name": name, "text": text,
                                           "version": served["version"], "kind": "classifier", "label": label,
                                           "probability": 0.9}) + "\n")  # fmt: skip

    write.served, write.name = served, name
    yield write
    home.cache_clear()


def verdicts(name: str) -> list[bool]:
    return [window.drifts for window in windows.state(name).windows]


def test_windows_are_recorded_once_and_the_rule_asks_once(requests) -> None:
    name = requests.name
    assert windows.names() == []
    with pytest.raises(UsageError, match="ajuste serve --log-requests"):
        windows.judge_new(name)
    assert not windows.state(name).asks
    requests(False, True)
    requests(False, rows=10)
    assert windows.names() == [name]
    new, log = windows.judge_new(name)
    assert [window.drifts for window in new] == [False, True] and log.waiting == 10
    assert windows.judge_new(name)[0] == []  # the same requests are no second window
    assert verdicts(name) == [True, False] and not windows.state(name).asks
    requests(False, rows=30)  # fills the window that was begun
    windows.judge_new(name)
    assert verdicts(name) == [False, True, False] and not windows.state(name).asks, "the latest must be one of them"
    requests(True)
    windows.judge_new(name)
    asked = windows.state(name)
    assert asked.asks and verdicts(name) == [True, False, True, False]
    windows.triggered(asked)
    assert windows.state(name).windows == [] and not windows.state(name).asks, "the count starts anew"
    requests(True)
    windows.judge_new(name)
    assert verdicts(name) == [True] and not windows.state(name).asks
    requests(True)
    windows.judge_new(name)
    assert windows.state(name).asks
    requests.served["version"] = "2"  # another version has other training data
    assert windows.state(name).windows == []
    assert windows.judge_new(name)[1].others == 240
    with pytest.raises(DataError, match=r"holds 0 requests of .*-classifier/2 \(240 of other versions\)"):
        windows.judge_latest(name)


def test_what_a_window_is_remembered_by(requests, monkeypatch: pytest.MonkeyPatch) -> None:
    name = requests.name
    requests(True)
    record = windows.runs.log

    def killed(*args: object, **kwargs: object) -> None:
        record(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(windows.runs, "log", killed)
        windows.judge_new(name)
    assert windows.state(name).windows == [], "a window counts when it is whole"
    (window,), _ = windows.judge_new(name)
    found = windows.client().search_runs([windows.experiment_id(windows.DRIFT)], f"tags.`drift.name` = '{name}'")
    assert [run.info.run_id for run in found] == [window.run_id]
    run = found[0]
    assert run.info.status == "FINISHED" and run.data.metrics["drifts"] == 1
    assert run.data.params["drift.alpha"] == "0.01"
    assert {f"{kind}/{name}" for kind in ("effect", "p") for name in ("length", "vocabulary", "classes", "embeddings")
            } <= set(run.data.metrics)  # fmt: skip
    assert run.data.metrics["effect/vocabulary"] == 1.0
    assert run.data.tags["mlflow.note.content"].startswith("drift: ") and "wort" not in str(run.data.tags)


def test_five_of_a_long_backlog_are_judged(requests) -> None:
    name = requests.name
    requests(*[False] * 7)
    new, log = windows.judge_new(name)
    assert len(new) == 5 and log.skipped == 2
    assert windows.judge_new(name)[0] == []


@pytest.mark.slow
def test_drift_makes_a_run_of_adapt_through_event_and_automation(requests, monkeypatch: pytest.MonkeyPatch) -> None:
    name = requests.name
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.testing.utilities import prefect_test_harness

    from flows import automations
    from flows.drift import NotJudged, drift

    @flow(name="adapt")
    def adapt() -> None: ...

    with prefect_test_harness(server_startup_timeout=300), get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(adapt), "adapt")
        for _ in range(2):
            assert automations.DRIFT in automations.apply(client)

        def runs() -> list:
            return [run for run in client.read_flow_runs() if run.deployment_id == deployment]

        def wait_for(number: int, seconds: float) -> None:
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and len(runs()) < number:
                time.sleep(0.5)
            assert len(runs()) == number

        requests(True)
        assert "1 new windows, 1 of them drifted" in drift()[name]
        requests(True)
        assert drift()[name].endswith("`adapt` was asked for")
        wait_for(1, 60)
        assert runs()[0].state.is_scheduled() and runs()[0].parameters == {}
        assert "asked for" not in drift()[name]
        time.sleep(5)
        assert len(runs()) == 1, "one drift asks once"
        found = client.request("POST", "/artifacts/filter", json={}).json()
        assert any(item["key"] == f"drift-{name}" and "drift: " in item["data"] for item in found)

        monkeypatch.setattr(windows, "baseline", _refuses)
        requests(True)
        with pytest.raises(NotJudged, match="trained beside other rows"):
            drift()


def _refuses(*args: object) -> None:
    raise UsageError("trained beside other rows")


def test_the_deployment_and_policy_agree() -> None:
    entries = yaml.safe_load((ROOT / "infra" / "prefect.yaml").read_text())["deployments"]
    for entry in entries:
        if entry["name"] == "drift":
            assert entry["entrypoint"] == "flows/drift.py:drift" and not entry.get("parameters")
    assert policy("drift", DriftConfig, ROOT / "policy.yaml").drifted == 2
