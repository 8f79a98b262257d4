"""tasks/assistant/kept.py on tiny models: the figures of the model after, paired with what was measured before."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ajuste.core.errors import DataError, UsageError
from ajuste.judging.assistant import MeasureConfig
from tasks.assistant.kept import KeptConfig, measure_config, measure_kept
from tests.made.tiny_decoders import ANSWERED, tiny_full
from tests.tasks.test_evaluate_instruct import COMPUTE, CONFIG, files, run  # noqa: F401

MEASURE = MeasureConfig(**{key: value for key, value in CONFIG.model_dump().items() if key != "reviews"})


@pytest.fixture(scope="module")
def before(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """What evaluate_instruct wrote of the model before, beside the folders that both stages read."""
    out = tmp_path_factory.mktemp("before")
    run(files, out)
    tiny_full(files / "base", files / "after", seed=4)
    return out


def measured(files: Path, before: Path, out: Path, model: str = "after", **changes) -> dict:  # noqa: F811
    config = KeptConfig(**{"rows": None, "references": None, **changes})
    return measure_kept(
        config, MEASURE, COMPUTE, "ppo", files / model, before, files / "encoded", files / "prompts", out
    )


def test_the_model_after_is_measured_as_its_own_evaluation_would(files: Path, before: Path, tmp_path: Path) -> None:  # noqa: F811
    report = measured(files, before, tmp_path / "out")
    its_own = run(files, tmp_path / "own", "after")
    # sums of the model before are read as its evaluation rounded them, to 6 digits
    assert report["held_out"]["ppo"]["loss"] == pytest.approx(its_own["held_out"]["instruct"]["loss"], rel=1e-4)
    assert report["rules"]["ppo"]["kinds"] == its_own["rules"]["instruct"]["kinds"]
    for name, found in its_own["references"]["instruct"].items():
        assert report["references"]["ppo"][name] == pytest.approx(found, abs=1e-5)
    was = json.loads((before / "instruct.json").read_text())
    assert report["held_out"]["sft"]["loss"] == pytest.approx(was["held_out"]["instruct"]["loss"], rel=1e-4)
    assert report["rules"]["sft"]["kinds"] == was["rules"]["instruct"]["kinds"]
    gap = report["held_out"]["difference"]["value"]
    losses = [report["held_out"][name]["loss"]["value"] for name in ("sft", "ppo")]
    assert gap == pytest.approx(losses[1] - losses[0], abs=1e-5) and abs(gap) > 1e-4
    difference = report["references"]["difference"]["rougeL"]["value"]
    rouge = [report["references"][name]["rougeL"]["value"] for name in ("sft", "ppo")]
    assert difference == pytest.approx(rouge[1] - rouge[0], abs=1e-5)


def test_rows_pair_with_those_of_the_model_before(files: Path, before: Path, tmp_path: Path) -> None:  # noqa: F811
    measured(files, before, tmp_path / "out", rows=4, references=2)
    table, was = (pq.read_table(folder / "rows.parquet").to_pylist() for folder in (tmp_path / "out", before))
    assert [(row["row_id"], row["tokens"], row["sft"]) for row in table] == [
        (row["row_id"], row["tokens"], row["instruct"]) for row in was[:4]]
    answers = [json.loads(line) for line in (tmp_path / "out/answers.jsonl").read_text().splitlines()]
    said = {row["id"]: row["instruct"] for row in map(json.loads, (before / "answers.jsonl").read_text().splitlines())}
    assert [(row["id"], row["sft"]) for row in answers] == [(name, said[name]) for name in ("short", "any")]
    assert all(isinstance(row[f"kept_{name}"], bool) for row in answers for name in ("sft", "ppo"))
    references = [json.loads(line) for line in (tmp_path / "out/references.jsonl").read_text().splitlines()]
    assert [row["reference"] for row in references] == ANSWERED[:2]
    assert all(0 <= row[f"rougeL_{name}"] <= 1 for row in references for name in ("sft", "ppo"))


def test_the_same_model_after_has_lost_nothing(files: Path, before: Path, tmp_path: Path) -> None:  # noqa: F811
    report = measured(files, before, tmp_path / "out", "full")
    assert report["held_out"]["difference"]["value"] == pytest.approx(0, abs=1e-5)
    assert report["references"]["difference"]["rougeL"]["value"] == 0
    assert report["rules"]["sft"] == report["rules"]["ppo"]


def test_what_does_not_belong_together_is_told(files: Path, before: Path, tmp_path: Path) -> None:  # noqa: F811
    changed = tmp_path / "changed"
    shutil.copytree(before, changed)
    table = pq.read_table(before / "rows.parquet")
    pq.write_table(table.set_column(0, "row_id", [[f"z{i}" for i in range(table.num_rows)]]), changed / "rows.parquet")
    with pytest.raises(DataError, match="is of other rows"):
        measured(files, changed, tmp_path / "out")
    shutil.copy(before / "rows.parquet", changed / "rows.parquet")
    (changed / "answers.jsonl").write_text('{"id": "another", "prompt": "?", "base": "", "instruct": ""}\n')
    with pytest.raises(DataError, match="has no answer to prompt `short`"):
        measured(files, changed, tmp_path / "out")
    (changed / "references.jsonl").unlink()
    with pytest.raises(UsageError, match="references.jsonl is missing: run stage `evaluate_instruct`"):
        measured(files, changed, tmp_path / "out")
    with pytest.raises(UsageError, match="nothing"):
        measured(files, before, tmp_path / "out", "nothing")


def test_it_is_measured_as_the_model_before_by_params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = {**MEASURE.model_dump(), "reviews": 9}
    (tmp_path / "params.yaml").write_text(json.dumps({"evaluate": {"instruct": section}}))
    monkeypatch.chdir(tmp_path)
    assert measure_config() == MEASURE
