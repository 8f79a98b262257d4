"""A stage's plan from params.yaml and its folders: what is read, when a stage may start, how far the plan was off."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ajuste.core.errors import UsageError
from ajuste.core.imports import ROOT
from ajuste.learning.plan.activations import Way, kept
from ajuste.learning.plan.parts import ALWAYS
from ajuste.models import shapes
from ajuste.tracking.planning import check, room, stages
from ajuste.tracking.planning.room import PROCESS, Room

TRAINS = ["classify_full", "classify_lora", "instruct", "reward", "ppo", "dpo"]


@pytest.fixture
def project(tmp_path: Path, tiny_decoder: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose bases are made and whose sets are not encoded yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(check.TOLD, raising=False)
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    for place, base in (("base/decoder", tiny_decoder), ("merged/instruct", tiny_decoder),
                        ("base/encoder", tiny_encoder)):  # fmt: skip
        (tmp_path / "artifacts" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "artifacts" / place).symlink_to(base)
    return tmp_path


def named(plan) -> dict[tuple[str, str], float]:
    return {(part.name, part.when): part.bytes for part in plan.parts}


def write(name: str, rows: list[dict]) -> None:
    path = Path("artifacts/encoded") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_every_stage_that_trains_has_a_plan(project: Path) -> None:
    params = stages.read_params()
    every = [name for name in TRAINS if stages.trains(name, params)]
    assert every == TRAINS
    for name in TRAINS:
        plan = stages.of_stage(name, params)
        assert plan.total > 0 and name in plan.about and all(part.formula for part in plan.parts)
    for name in ("base_decoder", "merge_instruct", "evaluate_ppo", "summary", "gold", "classify_frozen", "nothing"):
        assert not stages.trains(name, params) and stages.of_stage(name, params) is None


def test_the_longest_encoded_rows_are_the_batch(project: Path) -> None:
    """8 rows of 512 tokens before encoding; afterwards the longest 8 that are there, and their trained tokens."""
    params = stages.read_params()
    base, way = shapes.of_folder(Path("artifacts/base/decoder")), Way(2)
    before = named(stages.of_stage("instruct", params))
    assert before["activations", "step"] == kept(base, stages.Batch((512,) * 8), way)[0]
    lengths = [20 + i for i in range(12)]
    write("instructions/train.parquet", [{"input_ids": [1] * n, "labels": [-100] * 5 + [1] * (n - 5)} for n in lengths])
    batch = stages._rows("instructions", params, 8)
    assert batch.lengths == tuple(sorted(lengths, reverse=True)[:8]) and batch.trained == sum(batch.lengths) - 8 * 5
    after = named(stages.of_stage("instruct", params))
    assert after["activations", "step"] == kept(base, batch, way)[0] < before["activations", "step"]


def test_what_comparisons_share_is_counted_once(project: Path) -> None:
    params = stages.read_params()
    params["reward"]["batch_rows"] = 2
    write("preferences/train.parquet", [
        {"prompt_ids": [7, 7, 7, i], "responses": [[1] * (5 + i), [2] * 3]} for i in range(4)
    ])  # fmt: skip
    batch = stages._comparisons(params, 2)
    assert (batch.prefix, sorted(batch.lengths), batch.trained) == (3, [4, 4, 8, 9], 8 + 3 + 7 + 3)
    assert ("logits", "step") not in {key for key, value in named(stages.of_stage("reward", params)).items() if value}


def test_settings_change_a_plan_as_they_change_a_training(project: Path) -> None:
    params = stages.read_params()
    lora = stages.of_stage("instruct", params)
    params["instruct"]["method"] = "full"
    P = shapes.of_folder(Path("artifacts/base/decoder")).P
    assert named(stages.of_stage("instruct", params))["Adam", ALWAYS] == 8 * P > named(lora)["Adam", ALWAYS]
    params["instruct"]["l2_to_w0"] = 0.1
    assert named(stages.of_stage("instruct", params))["W0, for the penalty", ALWAYS] == 4 * P
    params["ppo"]["value"] = "adapter"
    one, two = stages.of_stage("ppo", stages.read_params()), stages.of_stage("ppo", params)
    assert named(two)["activations", "step"] == 2 * named(one)["activations", "step"]
    params["instruct"]["method"] = "prefix"
    with pytest.raises(ValueError, match="prefix"):
        stages.of_stage("instruct", params)


def test_a_study_of_groups_takes_what_it_does_not_set(project: Path) -> None:
    shutil.copytree(ROOT / "studies/grpo", "studies/grpo")
    params = stages.read_params()
    assert params["grpo"]["group"] == 4 and params["grpo"]["lr"] and "accumulation" not in params["grpo"]
    value = {part.name: part.formula for part in stages.of_stage("grpo", params).parts}["value"]
    assert value == "none"


def test_a_stage_that_does_not_fit_is_refused_with_what_would(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = stages.read_params()
    need = stages.of_stage("instruct", params).total + PROCESS
    check.refuse("instruct")
    monkeypatch.setattr(check, "room", lambda device: Room("cpu", need - 1, PROCESS))
    with pytest.raises(UsageError, match=r"stage `instruct` would need .* are free .*`instruct.accumulation: 2` needs"):
        check.refuse("instruct")
    monkeypatch.setattr(check, "room", lambda device: Room("cpu", need, PROCESS))
    check.refuse("instruct")
    monkeypatch.setattr(check, "room", lambda device: Room("cpu", PROCESS, PROCESS))
    with pytest.raises(UsageError, match="no setting of params.yaml makes it fit"):
        check.refuse("instruct")
    for name in ("summary", "merge_instruct"):  # without a plan
        check.refuse(name)
    monkeypatch.setenv(check.TOLD, "1")
    check.refuse("instruct")


def test_a_cluster_has_room_of_its_own(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "room", lambda device: Room("cpu", PROCESS, PROCESS))
    with pytest.raises(UsageError, match="no setting of params.yaml"):
        check.refuse("instruct")
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("  by: one ", "  by: ray ", 1))
    check.refuse("instruct")


def test_what_is_not_made_yet_is_the_stages_own_matter(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "room", lambda device: Room("cpu", 0, PROCESS))
    Path("artifacts/base/decoder").unlink()
    check.refuse("instruct")
    Path("params.yaml").unlink()
    check.refuse("instruct")


def test_changes_are_tried_on_the_plan(project: Path) -> None:
    params = stages.read_params()
    words = [one for one, _ in check.tried("instruct", params)]
    assert words == ["`instruct.accumulation: 2`", "`instruct.accumulation: 4`", "`instruct.accumulation: 8`",
                     "`instruct.method: qlora`"]  # fmt: skip
    assert [one for one, _ in check.tried("ppo", params)][:2] == ["`ppo.micro_rows: 8`", "`ppo.micro_rows: 4`"]
    assert "`classify.lora.accumulation: 2`" in [one for one, _ in check.tried("classify_lora", params)]
    cpu, gpu = (stages.of_stage("instruct", params, sdpa=one) for one in (False, True))
    left = named(cpu)["left between blocks by malloc", "step"]
    assert left == pytest.approx(0.7 * (cpu.of(["step"]) - left)) and "malloc" not in str(gpu.parts)
    totals = [stages.of_stage("instruct", changed).total for _, changed in check.tried("instruct", params)[:3]]
    assert totals == sorted(totals, reverse=True) and params == stages.read_params()


def test_the_error_of_a_plan_is_a_metric(project: Path) -> None:
    planned = (stages.of_stage("instruct", stages.read_params()).total + PROCESS) / 2**20
    found = check.against("instruct", {"peak_memory_mb": planned / 2, "device": "cpu"})
    assert found == {"cost/planned_memory_mb": round(planned, 1), "cost/plan_error": 1.0}
    assert check.against("instruct", {}) == check.against("summary", {"peak_memory_mb": 1.0, "device": "cpu"}) == {}
    assert check.against("instruct", {"peak_memory_mb": 1.0, "device": "cuda"}) == {}


def test_what_is_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit, used = tmp_path / "max", tmp_path / "current"
    limit.write_text("3000000\n")
    used.write_text("1000000\n")
    monkeypatch.setattr(room, "GROUPS", ((str(limit), str(used)), (str(tmp_path / "none"), str(used))))
    assert room.room("cpu") == Room("cpu", 2_000_000, PROCESS)
    limit.write_text("max\n")
    assert room.room("cpu").bytes > 2_000_000
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 1024\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert room.room("auto") == Room("cuda", 2**30, 0.0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert room.room("auto").device == "cpu"
