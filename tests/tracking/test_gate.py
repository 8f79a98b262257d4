"""The verdict: whose results are compared, who is scored anew, what is remembered, what a mode does."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ajuste.core.errors import DataError, UsageError
from ajuste.core.home import home
from ajuste.core.imports import ROOT
from ajuste.core.params import read_yaml
from ajuste.judging.verdicts.budget import Ledger, level, refreshed
from ajuste.tracking.project import lock
from ajuste.tracking.registry import promotion, registry
from ajuste.tracking.registry.families.classifier import CLASSIFIER
from ajuste.tracking.registry.tags import unfold
from ajuste.tracking.runs import runs
from ajuste.tracking.runs.store import client
from ajuste.tracking.verdicts import evidence as gathering
from ajuste.tracking.verdicts import gate
from tests.made.tiny_classifiers import LABELS
from tests.tracking import projects

NAME = "reviews-classifier"
GATE = read_yaml(ROOT / "policy.yaml")["gate"]


def made(root: Path, seed: int, moved: float, share: float, first: int = 0) -> Path:
    """A run whose LoRA is right on `share` of the test rows, whose ids count from `first`; registered."""
    projects.make(root, seed, moved)
    encoded, validated = root / "artifacts/encoded/reviews", root / "artifacts/validated/reviews"
    validated.mkdir(parents=True)
    ids = [f"te{i + first:014x}" for i in range(projects.TEST_ROWS)]
    labels = [i % 2 for i in range(projects.TEST_ROWS)]
    pq.write_table(pa.table({"row_id": ids, "label": pa.array(labels, pa.int32())}), encoded / "test.parquet")
    pq.write_table(pa.table({"row_id": ["a", "b", "c"], "label": pa.array([0, 1, 1], pa.int32())}),
                   encoded / "train.parquet")
    (encoded / "labels.json").write_text(json.dumps(LABELS))
    texts = ["a good film" if label else "a bad film" for label in labels]
    pq.write_table(pa.table({"row_id": ids, "text": texts, "label": labels}), validated / "test.parquet")
    checks = [{"name": "empty_text", "severity": "error", "passed": True, "rows_failed": 0, "rule": {}},
              {"name": "html", "severity": "warn", "passed": False, "rows_failed": 3, "rule": {}}]
    (validated / "validation.json").write_text(json.dumps({"checks": checks}))
    path = root / "artifacts/evaluated/classify/predictions.parquet"
    rows = [row for row in pq.read_table(path).to_pylist() if row["strategy"] != "lora"]
    for i, row_id in enumerate(ids):
        right = i < share * projects.TEST_ROWS
        rows.append({"row_id": row_id, "label": labels[i], "strategy": "lora",
                     "prediction": labels[i] if right else 1 - labels[i], "probabilities": [0.5, 0.5]})
    pq.write_table(pa.Table.from_pylist(rows), path)
    projects.lock(root)
    register(root)
    return root


def register(root: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        parent = runs.parent(root.name * 8)
        for stage in lock.stages():
            runs.record(stage, parent)
        registry.register_all(parent)
    params = {"compute": {"dtype": "float32", "device": "cpu", "threads": 1, "seed": 0},
              "evaluate": {"classify": {"batch_rows": 8}}}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    (root / "policy.yaml").write_text(yaml.safe_dump({"gate": GATE}))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on the same test rows: the second is best on validation and 30 points better on the test."""
    folder = tmp_path_factory.mktemp("gate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AJUSTE_HOME", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        home.cache_clear()
        made(folder / "first", 0, 0.0, 0.65)
        made(folder / "second", 1, 0.05, 0.95)
    home.cache_clear()
    return folder


@pytest.fixture
def second(store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the second run, without a champion."""
    monkeypatch.setenv("AJUSTE_HOME", str(store))
    monkeypatch.chdir(store / "second")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home.cache_clear()
    for alias in ("champion", "previous"):
        client().delete_registered_model_alias(NAME, alias)
    if "gate.budget.accuracy" in client().get_registered_model(NAME).tags:
        client().delete_registered_model_tag(NAME, "gate.budget.accuracy")
    for number in ("1", "2", "3", "6"):
        if "gate" in client().get_model_version(NAME, number).tags:
            client().delete_model_version_tag(NAME, number, "gate")
    yield store
    home.cache_clear()


def champion() -> str | None:
    found = client().get_registered_model(NAME).aliases.get("champion")
    return None if found is None else str(found)


def test_the_first_challenger_is_held_against_the_most_frequent_label(second: Path) -> None:
    verdict = gate.judge(NAME)
    names = [rule.name for rule in verdict.rules]
    assert (verdict.version, verdict.champion, names) == ("6", None, ["budget", "base accuracy", "proof", "data"])
    assert verdict.passed and "0.9500 against 0.5000 of the most frequent label" in verdict.text()
    assert gate.act(verdict, gate.config_of()) == f"{NAME}/6 is champion now, before it none"
    assert champion() == "6" and promotion.history(NAME)[0].who == "gate"
    with pytest.raises(UsageError, match="is the champion already"):
        gate.judge(NAME)


def test_better_than_the_champion_is_promoted_and_remembered(second: Path) -> None:
    client().set_registered_model_alias(NAME, "champion", "3")
    before = len(client().search_runs([e.experiment_id for e in client().search_experiments()], max_results=1000))
    verdict = gate.judge(NAME)
    assert verdict.passed and verdict.champion == "3"
    beside = verdict.rules[2]
    assert beside.name == "champion accuracy" and beside.value == pytest.approx(0.3, abs=0.15) and beside.value > 0
    version = registry.find(f"{NAME}/6")
    assert gate.remembered(version) == verdict
    run = client().get_run(version.run_id)
    assert run.data.metrics["gate/passed"] == 1 and run.data.metrics["gate/champion_accuracy"] == beside.value
    text = Path(client().download_artifacts(version.run_id, "gate.md")).read_text()
    assert "| champion accuracy | pass |" in text
    after = len(client().search_runs([e.experiment_id for e in client().search_experiments()], max_results=1000))
    assert after == before, "a verdict makes no run"
    stored = client().get_model_version(NAME, "6").tags
    assert "gate" in stored and "gate" not in json.loads(stored["record"]) and unfold(stored)["strategy"] == "lora"


def test_no_better_is_refused_and_the_champion_stays(second: Path) -> None:
    client().set_registered_model_alias(NAME, "champion", "6")
    verdict = gate.judge(NAME, "3")
    assert not verdict.passed and verdict.failed == ["base accuracy", "champion accuracy"]
    assert "FAIL  champion accuracy" in verdict.text() and "**FAIL**" in verdict.markdown()
    assert gate.act(verdict, gate.config_of()).startswith(f"{NAME}/3 is not promoted, champion stays version 6")
    assert champion() == "6"


def test_modes_and_what_a_quiet_run_judges(second: Path) -> None:
    client().set_registered_model_alias(NAME, "champion", "3")
    config = gate.config_of()
    assert gate.challengers(config, new=False) == [NAME], "never judged: a run ended before it"
    verdict = gate.judge(NAME)
    dry = config.model_copy(update={"mode": "dry-run"})
    assert "would be promoted; `gate.mode` is dry-run, so champion stays version 3" in gate.act(verdict, dry)
    assert champion() == "3"
    assert gate.challengers(dry, new=False) == [] and gate.challengers(dry, new=True) == [NAME]
    assert gate.challengers(config, new=False) == [NAME], "it passed, and a run ended before the promotion"
    client().set_registered_model_alias(NAME, "champion", "1")
    assert "since it was judged the champion became version 1" in gate.act(verdict, config)
    client().set_registered_model_alias(NAME, "champion", "3")
    gate.act(verdict, config)
    assert champion() == "6" and gate.challengers(config, new=True) == []
    promotion.rollback(NAME, "me", "it was rude")
    assert gate.challengers(config, new=False) == []
    again = gate.judge(NAME)
    assert again.passed and "somebody rolled back from it" in gate.act(again, config) and champion() == "3"


def test_a_champion_of_other_rows_is_scored_on_todays_once(second: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def process(family, folder: Path, out: Path, *more: str) -> None:
        asked.append((family, folder.name))
        ids = pq.read_table("artifacts/encoded/reviews/test.parquet")["row_id"]
        pq.write_table(pa.table({"row_id": ids, "value": [0.0] * len(ids), "weight": [1.0] * len(ids)}), out)

    monkeypatch.setattr(gathering, "_process", process)
    client().set_registered_model_alias(NAME, "champion", "3")
    old = unfold(client().get_model_version(NAME, "3").tags)["test_rows"]
    record = json.loads(client().get_model_version(NAME, "3").tags["record"])
    client().set_model_version_tag(NAME, "3", "record", json.dumps({**record, "test_rows": "0" * 16}))
    try:
        for _ in range(2):
            assert "0.9500 against 0.0000 of champion 3" in gate.judge(NAME).text()
        assert len(asked) == 1 and asked[0][0] is CLASSIFIER
        kept = list((second / ".state/gate").iterdir())
        assert [path.suffix for path in kept] == [".parquet"] and old in kept[0].name
        kept[0].unlink()

        def broken(*args: object) -> None:
            raise DataError("it cannot be scored on them: gone")

        monkeypatch.setattr(gathering, "_process", broken)
        verdict = gate.judge(NAME)
        assert verdict.failed == ["champion accuracy"] and "was not evaluated on today's test rows" in verdict.text()
    finally:
        client().set_model_version_tag(NAME, "3", "record", json.dumps(record))


@pytest.mark.slow
def test_scoring_and_measuring_run_in_a_process_of_their_own(second: Path) -> None:
    version = registry.resolve(f"{NAME}/3")
    today = gathering.rows_digest(CLASSIFIER, "test")
    found = gathering.scored(CLASSIFIER, version.path, version.tags["sha256"], today)
    assert len(found) == projects.TEST_ROWS and {value for value, _ in found.values()} <= {0.0, 1.0}
    measured = gathering._measured(version, CLASSIFIER)
    assert measured["latency_ms"] > 0 and 50 < measured["memory_mb"] < 20_000
    with pytest.raises(DataError, match="it cannot be scored on them: .*nowhere"):
        gathering.scored(CLASSIFIER, Path("nowhere"), "f" * 64, today)


def test_the_report_has_the_last_verdict_of_each_name(second: Path) -> None:
    from ajuste.tracking.pages import report

    assert report._gates([]) == []
    client().set_registered_model_alias(NAME, "champion", "6")
    verdict = gate.judge(NAME, "3")
    rows = [{"name": v.name, "version": v.version, "tags": v.tags} for v in registry.versions(NAME)]
    assert report._gates([row for row in rows if row["version"] == "3"]) == [verdict]
    assert [found.name for found in report._gates(rows)] == [NAME]


def test_what_is_wrong_is_one_line(second: Path) -> None:
    for name, said in ((f"{NAME}-adapter", "the gate judges what is served"), ("nope", "no registered model `nope`")):
        with pytest.raises(UsageError, match=said):
            gate.judge(name)
    with pytest.raises(UsageError, match="has no version 99"):
        gate.judge(NAME, "99")
    Path("policy.yaml").rename("policy.away")
    try:
        Path("policy.yaml").write_text("drift: {}\n")
        with pytest.raises(UsageError, match="section `gate` is missing"):
            gate.config_of()
    finally:
        Path("policy.away").rename("policy.yaml")


def test_numbers_are_those_of_the_rows(second: Path) -> None:
    client().set_registered_model_alias(NAME, "champion", "3")
    rule = gate.judge(NAME).rules[2]
    d = np.array([float(i < 57) - float(i < 39) for i in range(60)])
    from ajuste.learning.statistics.paired import gain

    assert rule.value == gain(d, level=level(0.05, 365, 1)).lower


def spent() -> int:
    tag = client().get_registered_model(NAME).tags.get("gate.budget.accuracy")
    return json.loads(tag)["used"] if tag else 0


def test_each_comparison_is_a_look_and_the_same_one_again_is_none(second: Path) -> None:
    client().set_registered_model_alias(NAME, "champion", "3")
    assert spent() == 0
    first = gate.judge(NAME)
    assert spent() == first.look.number == 1 and "look 1 of 365 at these 60 test rows" in first.text()
    again = gate.judge(NAME)
    assert (again.look, again.rules) == (first.look, first.rules) and spent() == 1, "nothing else was looked at"
    dry = gate.config_of().model_copy(update={"mode": "dry-run"})
    assert gate.judge(NAME, config=dry).look == first.look and spent() == 1
    assert gate.judge(NAME, "2", dry).look.number == spent() == 2, "who reads a dry run may promote"
    client().set_registered_model_alias(NAME, "champion", "1")
    beside = gate.judge(NAME)
    assert beside.look.number == spent() == 3, "another champion is another comparison"
    assert beside.rules[0].value < first.rules[0].value


def test_what_cannot_promote_costs_nothing_and_a_spent_budget_promotes_nobody(second: Path) -> None:
    client().set_registered_model_alias(NAME, "champion", "3")
    few = gate.config_of().model_copy(update={"minimum_rows": 61})
    refused = gate.judge(NAME, config=few)
    assert refused.look is None and spent() == 0 and refused.failed == ["base accuracy", "champion accuracy"]
    two = gate.config_of().model_copy(update={"looks": 2})
    assert [gate.judge(NAME, number, two).look.number for number in ("6", "2")] == [1, 2]
    none = gate.judge(NAME, "1", two)
    assert none.failed == ["budget"] and none.look is None and spent() == 2
    assert "all 2 looks at these 60 test rows are spent: bring fresh rows (`ajuste data add`)" in none.text()
    assert gate.act(none, two).endswith("champion stays version 3: budget")
    assert gate.judge(NAME, "6", two).passed, "a look that was made is still there"


def test_fresh_rows_bring_looks_back(second: Path) -> None:
    """The rows of the name's ledger are half of today's: of 4 looks 2 count."""
    client().set_registered_model_alias(NAME, "champion", "3")
    ids = [f"te{i:014x}" for i in range(30)]
    ledger = refreshed(Ledger(), ids)
    stored = {"used": 4, "rows": ledger.rows, "seen": ledger.seen}
    client().set_registered_model_tag(NAME, "gate.budget.accuracy", json.dumps(stored))
    assert gate.judge(NAME).look.number == 3 and spent() == 3
    kept = json.loads(client().get_registered_model(NAME).tags["gate.budget.accuracy"])
    assert len(kept["seen"]) == projects.TEST_ROWS and kept["rows"] != ledger.rows
