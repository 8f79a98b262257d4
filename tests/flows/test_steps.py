"""The flow's rules with DVC and MLflow replaced: what is started, what is tried again, what is said."""

import json
from pathlib import Path

import pytest

from ajuste.core import params
from ajuste.core import stage as core_stage
from ajuste.tracking.project import lock
from ajuste.tracking.project.dvc import Outcome

STAGES = ["first_a", "second_a", "third_a"]


class FakeDvc:
    """Remembers what was run; `errors` are consumed one an attempt."""

    def __init__(self, home: Path) -> None:
        self.home, self.ran, self.errors = home, [], []

    def repro(self, name: str, log: Path, force: bool = False, poll: object = None) -> Outcome:
        self.ran.append((name, force) if force else name)
        error = self.errors.pop(0) if self.errors else None
        if error == "killed":
            return Outcome(255, "ran", "ERROR: failed to run")
        if error == "full":  # the disk had no room for .state either, or DVC itself met its end
            return Outcome(255, "ran", "ERROR: failed to save: [Errno 28] No space left on device")
        (self.home / ".checkpoints" / f"key-{name}").mkdir(parents=True, exist_ok=True)
        (self.home / ".checkpoints" / f"key-{name}" / "ENDED").touch()
        state = {"seconds": 1.0, "peak_memory_mb": 5.0, "error": error and {"kind": error, "message": f"{error} it is"}}
        (self.home / ".state").mkdir(exist_ok=True)
        (self.home / ".state" / f"{name}.json").write_text(json.dumps(state))
        return Outcome(255 if error else 0, "ran", "")


@pytest.fixture
def dvc(prefect_harness: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDvc:
    from flows import _steps

    fake = FakeDvc(tmp_path)
    parents = dict(zip(STAGES, [set(), {"first_a"}, {"second_a"}], strict=True))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AJUSTE_HOME", str(tmp_path))
    core_stage.home.cache_clear()
    monkeypatch.setattr("ajuste.tracking.project.dvc.repro", fake.repro)
    monkeypatch.setattr(lock, "parents_of", lambda name: parents[name])
    monkeypatch.setattr(lock, "stage_key", lambda name: f"key-{name}")
    monkeypatch.setattr(_steps, "stage_key", lambda name: f"key-{name}")
    monkeypatch.setattr(_steps.runs, "begin", lambda name, key, parent: f"run-{name}")
    monkeypatch.setattr(_steps.runs, "follow", lambda *args: 0)
    monkeypatch.setattr(_steps.runs, "fail", lambda *args: None)
    monkeypatch.setattr(_steps.runs, "record", lambda name, parent: f"run-{name}")
    monkeypatch.setattr(_steps.run_stage, "retry_delay_seconds", [0, 0])
    yield fake
    core_stage.home.cache_clear()


def go(stale: set[str], skipped: set[str] = frozenset(), forced: str | None = None) -> dict[str, str]:
    """A flow over the three stages, as pipeline.py writes it."""
    from prefect import flow

    from flows._steps import Plan, stage

    @flow(name="test")
    def three() -> dict[str, str]:
        plan = Plan(set(stale), set(skipped), forced, "parent")
        first = stage("first_a", plan)
        second = stage("second_a", plan, wait_for=[first])
        stage("third_a", plan, wait_for=[second])
        return plan.actions

    return three()


def test_fresh_stages_start_nothing(dvc: FakeDvc) -> None:
    assert go(set()) == dict.fromkeys(STAGES, "cached")
    assert dvc.ran == []


def test_what_follows_from_a_stage_that_ran_is_asked_again(dvc: FakeDvc) -> None:
    assert go({"second_a"}) == {"first_a": "cached", "second_a": "ran", "third_a": "ran"}
    assert dvc.ran == ["second_a", "third_a"]


def test_skipped_and_forced_stages(dvc: FakeDvc) -> None:
    assert go({"second_a"}, skipped={"first_a", "third_a"}, forced="second_a") == {"second_a": "ran"}
    assert dvc.ran == [("second_a", True)]


@pytest.mark.parametrize("error", ["infra", "killed"])
def test_infrastructure_failures_are_tried_again(dvc: FakeDvc, error: str) -> None:
    dvc.errors = [error, error]
    assert go({"first_a"})["first_a"] == "ran"
    assert dvc.ran[:3] == ["first_a"] * 3


@pytest.mark.parametrize("error", ["data", "usage", "bug", "interrupted"])
def test_other_failures_end_the_flow_at_once(dvc: FakeDvc, error: str) -> None:
    from flows._steps import StageFailed

    dvc.errors = [error]
    with pytest.raises(StageFailed, match=f"stage `first_a`: {error} it is") as caught:
        go({"first_a"})
    assert caught.value.kind == error
    assert dvc.ran == ["first_a"]


@pytest.mark.parametrize("error", ["room", "full"])
def test_a_full_disk_ends_the_flow_at_once_and_says_what_prune_would_free(
    dvc: FakeDvc, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    from ajuste.tracking.pruning import prune
    from flows._steps import StageFailed

    plan = prune.Plan([prune.Item("cache", "9 files", "named by nothing", 1_234_000_000, lambda: None)], {})
    monkeypatch.setattr(prune, "plan", lambda keep: plan)
    dvc.errors = [error]
    with pytest.raises(StageFailed, match=r"\(it would free 1\.2 GB\)$") as caught:
        go({"first_a"})
    assert caught.value.kind == "room" and dvc.ran == ["first_a"]


def test_checkpoints_go_when_the_result_is_recorded(
    dvc: FakeDvc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import _steps

    def record(name: str, parent: str) -> str:
        seen.append((name, (tmp_path / ".checkpoints" / f"key-{name}").is_dir()))
        return f"run-{name}"

    seen: list[tuple[str, bool]] = []
    (tmp_path / ".checkpoints" / "key-second_a").mkdir(parents=True)  # of a training that a kill left unfinished
    monkeypatch.setattr(_steps.runs, "record", record)
    go({"third_a"})
    assert seen == [("first_a", False), ("second_a", True), ("third_a", True)]
    assert [path.name for path in (tmp_path / ".checkpoints").iterdir()] == ["key-second_a"]


def test_a_stage_that_does_not_fit_is_not_started(dvc: FakeDvc, monkeypatch: pytest.MonkeyPatch) -> None:
    from ajuste.core.errors import UsageError
    from flows import _steps

    def refuse(name: str) -> None:
        if name == "second_a":
            raise UsageError("stage `second_a` would need 2 GB and 1 GB are free")

    monkeypatch.setattr(_steps, "refuse", refuse)
    with pytest.raises(_steps.StageFailed, match="^stage `second_a`: would need 2 GB and 1 GB are free$") as caught:
        go({"first_a", "second_a"})
    assert caught.value.kind == "usage" and dvc.ran == ["first_a"]


def test_an_alarm_is_said_below_the_stage_that_it_stopped(dvc: FakeDvc, tmp_path: Path, capsys) -> None:
    out = tmp_path / "artifacts/adapters/ppo"
    out.mkdir(parents=True)
    (tmp_path / "dvc.lock").write_text(
        "stages:\n  second_a:\n    outs: [{path: artifacts/adapters/ppo}, {path: metrics/none.json}]\n"
    )
    (out / "alarms.json").write_text("[]\n")
    go({"second_a"})
    assert "alarm" not in capsys.readouterr().err
    said = "update 2: KL to the reference is 0.08 nats a response; the limit `alarm_kl` is 0.01"
    (out / "alarms.json").write_text(json.dumps([{"said": said, "rolled_back_to": 0}]))
    go({"second_a"})
    lines = capsys.readouterr().err.splitlines()
    said_of = [line.split()[:2] for line in lines]
    assert said_of == [["first_a", "cached"], ["second_a", "begins"], ["second_a", "ran"], ["alarm", "update"],
                       ["third_a", "begins"], ["third_a", "ran"]]
    assert lines[3].endswith(f"alarm  {said}; rolled back to update 0")


@pytest.mark.parametrize("names, ran, said", [((), "ran", True), (("a",), "ran", False), ((), "cached", False)])
def test_a_run_that_ends_before_a_judge_says_that_nothing_was_registered(
    dvc: FakeDvc, monkeypatch: pytest.MonkeyPatch, capsys, names: tuple, ran: str, said: bool
) -> None:
    from prefect import flow

    from flows import _steps

    monkeypatch.setattr(_steps.registry, "summary", dict)
    monkeypatch.setattr(_steps, "stages_of_names", lambda: {"assistant": set(), "assistant:sft": set(), "a": set()})
    plan = _steps.Plan(set(), set(), None, None, {"first_a": ran}, names=set(names))
    flow(name="test")(lambda: _steps.finish(plan, []))()
    words = "nothing was registered: `ajuste run NAME` goes on to a judged version of a, assistant\n"
    assert (words in capsys.readouterr().err) is said


@pytest.mark.parametrize("names, asked", [({"ratings-reward"}, [("parent", ["first_a", "second_a"])]), (set(), [])])
def test_only_what_a_run_reached_is_registered(
    dvc: FakeDvc, monkeypatch: pytest.MonkeyPatch, names: set, asked: list
) -> None:
    from prefect import flow

    from flows import _steps

    seen = []
    monkeypatch.setattr(_steps.registry, "register_all", lambda *args: seen.append(args) or [])
    plan = _steps.Plan(set(), {"third_a"}, None, "parent", reached={"second_a", "first_a"}, names=names)
    flow(name="test")(lambda: _steps.register(plan, []))()
    assert seen == asked


def test_map_has_every_stage_of_dvc_yaml_in_its_order() -> None:
    import re

    root = Path(__file__).parents[2]
    lines = (root / "flows/pipeline.py").read_text()
    named = re.findall(r'stage\("(\w+)", plan', lines)
    assert named == list(params.read_yaml(root / "dvc.yaml")["stages"])
