"""Stages `reference` and `dpo` on a tiny decoder: the start, that it learns, its curves, alarms, and resuming."""

import json
import math
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from ajuste.core.errors import DataError, UsageError
from ajuste.core.figures import rounded
from ajuste.core.imports import ROOT
from ajuste.core.params import Compute
from ajuste.models import decoder, responses
from ajuste.rows.encoded.comparisons import read_comparisons
from ajuste.rows.encoded.reference import read_reference
from tasks.dpo import DpoConfig, Folders, alarms_of, dpo, said
from tasks.reference import ReferenceConfig, reference
from tests.made import tiny_classifiers, tiny_rlhf
from tests.made.folders import contents
from tests.made.killed import die_thrice
from tests.tasks.test_reward import comparisons

COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)
CONFIG = DpoConfig(
    loss="sigmoid", beta=0.1, label_smoothing=0.0, gamma=0.0, r=4, alpha=8, lora_dropout=0.0, targets=["all-linear"],
    lr=1e-2, warmup=0.1, epochs=1, batch_rows=8, accumulation=1, weight_decay=0.0, max_grad_norm=1.0, evaluations=2,
    patience=2, alarm_displacement=None, samples=4, new_tokens=4, temperature=0.7,
)  # fmt: skip
CURVES = {"chosen", "rejected", "reward_chosen", "reward_rejected", "margin", "accuracy", "displacement"}


def of(**changes) -> DpoConfig:
    return DpoConfig(**{**CONFIG.model_dump(), **changes})


def prepared(sft: Path, root: Path, kind: str = "ratings", dtype: str = "float32") -> Folders:
    """Comparisons, prompts with the first words of their answers, the reference's word, a judge."""
    encoded = comparisons(sft, root / "encoded", kind)
    tiny_rlhf.prompts(sft, encoded, ("validation",))
    gold = tiny_classifiers.tiny_full(tiny_classifiers.tiny_base(root / "encoder"), root / "gold")
    reference(ReferenceConfig(dtype=dtype), COMPUTE, encoded, sft, root / "reference")
    return Folders(encoded, sft, root / "reference", gold)


def run(config: DpoConfig, folders: Folders, folder: Path) -> dict:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    return dpo(config, COMPUTE, folders, folder / "out", folder / "checkpoints")


def history_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "out/history.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def sft(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_rlhf.whole(base, tmp_path_factory.mktemp("sft") / "instruct", 3)


@pytest.fixture(scope="module")
def folders(sft: Path, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return prepared(sft, tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def trained(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("trained")
    return folder, run(CONFIG, folders, folder)


# --- the reference ----------------------------------------------------------------------------------------------------


def test_what_is_cached_is_what_is_computed_bit_for_bit(folders: Folders, sft: Path, tmp_path: Path) -> None:
    model = responses.load_reference(sft)
    table = pq.read_table(folders.reference / "log_probs.parquet")
    assert table.column_names == ["split", "row_id", "log_probs"] and table.num_rows == 64 + 24 + 24
    for split in ("train", "validation", "test"):
        some = read_comparisons(folders.encoded, split, model.config)
        lengths = [length for one in some for length in one.lengths]
        cached = [value for one in read_reference(folders.reference, split, some).found for value in one.log_probs]
        computed = responses.score(model, responses.rows(some.rows(), lengths))
        assert torch.equal(torch.tensor(cached), computed)
    reference(ReferenceConfig(dtype="float32"), COMPUTE, folders.encoded, sft, tmp_path)
    assert contents(tmp_path) == contents(folders.reference)


def test_a_reference_of_other_rows_or_of_another_model_is_refused(
    folders: Folders, base: Path, tmp_path: Path
) -> None:
    table = pq.read_table(folders.reference / "log_probs.parquet")
    pq.write_table(table.slice(1), tmp_path / "log_probs.parquet")
    (tmp_path / "reference.json").write_bytes((folders.reference / "reference.json").read_bytes())
    with pytest.raises(UsageError, match=r"is of other comparisons, row \w+ is none of them: run `reference` again"):
        run(CONFIG, folders._replace(reference=tmp_path), tmp_path / "run")
    other = tiny_rlhf.whole(base, tmp_path / "other", 4)
    with pytest.raises(UsageError, match="is of another model than .*: run `reference` again"):
        run(CONFIG, folders._replace(base=other), tmp_path / "run")
    with pytest.raises(UsageError, match="reference.json is missing or no JSON: run stage `reference`"):
        run(CONFIG, folders._replace(reference=tmp_path / "no"), tmp_path / "run")
    (tmp_path / "log_probs.parquet").unlink()
    with pytest.raises(UsageError, match="log_probs.parquet is missing: run stage `reference`"):
        run(CONFIG, folders._replace(reference=tmp_path), tmp_path / "run")


# --- training ---------------------------------------------------------------------------------------------------------


def test_it_starts_at_ln_2_and_learns_and_what_was_saved_is_what_was_evaluated(
    trained, folders: Folders, sft: Path
) -> None:
    folder, done = trained
    history = history_of(folder)
    first, *_, last = [row for row in history if "loss" in row]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5) and first["margin"] == pytest.approx(0, abs=1e-4)
    assert first.keys() - {"step", "loss", "lr", "grad_norm"} == CURVES and last["margin"] > 0.5
    test = json.loads((folder / "out/evaluation.json").read_text())["test"]
    assert test == rounded(done["test"]) and test["accuracy"]["value"] > 0.8 and test["pairs"] == 24
    assert [row["margin"] for row in test["by_margin"]] == [0.5, 1.0, 1.5, 2.5]

    model, _, card = decoder.load(folder / "out", sft)
    assert (card["method"], card["strategy"], card["base"]["id"]) == ("dpo", "dpo", "tiny+instruct")
    known = read_comparisons(folders.encoded, "test", model.config)
    lengths = [length for one in known for length in one.lengths]
    before = [v for one in read_reference(folders.reference, "test", known).found for v in one.log_probs]
    rewards = 0.1 * (responses.score(model, responses.rows(known.rows(), lengths)) - torch.tensor(before))
    right = (rewards.view(-1, 2)[:, 0] > rewards.view(-1, 2)[:, 1]).float()
    assert test["accuracy"]["value"] == rounded(right.mean().item())
    assert pq.read_table(folder / "out/pairs.parquet")["right"].to_pylist() == right.tolist()
    assert json.loads((folder / "out/alarms.json").read_text()) == []
    assert "margin >= 1.5" in said(done)[0] and "0 alarms" in said(done)[1]


def test_the_curves_are_what_they_say(trained, folders: Folders, sft: Path) -> None:
    """The kept evaluation, computed again from the saved adapter, row by row."""
    folder, done = trained
    model = decoder.load(folder / "out", sft)[0]
    known = read_comparisons(folders.encoded, "validation", model.config)
    lengths = [length for one in known for length in one.lengths]
    before = [v for one in read_reference(folders.reference, "validation", known).found for v in one.log_probs]
    after = responses.score(model, responses.rows(known.rows(), lengths)).numpy().reshape(-1, 2)
    before, tokens = np.array(before).reshape(-1, 2), np.array(lengths).reshape(-1, 2)
    rewards, validation = 0.1 * (after - before), done["validation"]
    margin = rewards[:, 0] - rewards[:, 1]
    expected = {
        "chosen": (after / tokens)[:, 0].mean(), "rejected": (after / tokens)[:, 1].mean(),
        "reward_chosen": rewards[:, 0].mean(), "reward_rejected": rewards[:, 1].mean(), "margin": margin.mean(),
        "accuracy": (margin > 0).mean(), "displacement": -((after - before) / tokens)[:, 0].mean(),
        "loss": np.log1p(np.exp(-margin)).mean(),
    }  # fmt: skip
    for name, value in expected.items():
        assert validation[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    kept = min((row for row in history_of(folder) if "eval_loss" in row), key=lambda row: row["eval_loss"])
    assert kept["eval_displacement"] == pytest.approx(expected["displacement"], rel=1e-4, abs=1e-5)
    assert {"gold", "gold_gain", "gold_gain_low", "gold_gain_high", "kl"} < validation.keys()
    assert validation["gold_gain_low"] <= validation["gold_gain"] <= validation["gold_gain_high"]


SLOW = [pytest.param(loss, marks=pytest.mark.slow) for loss in ("cdpo", "robust", "hinge", "simpo")]


@pytest.mark.parametrize("loss", ["ipo", "orpo", *SLOW])
def test_every_other_loss_learns_the_order_too(loss: str, folders: Folders, tmp_path: Path) -> None:
    smooth = {"label_smoothing": 0.1} if loss in ("cdpo", "robust") else {}
    beta = {"ipo": 1.0, "orpo": 1.0, "simpo": 2.0}.get(loss, 0.1)
    done = run(of(loss=loss, beta=beta, gamma=0.5, evaluations=1, **smooth), folders, tmp_path)
    assert done["test"]["accuracy"]["value"] > 0.8 and (done["loss"], done["beta"]) == (loss, beta)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pairs", "rankings"])
def test_sets_of_other_prompts_and_rankings_train_too(kind: str, sft: Path, tmp_path: Path) -> None:
    done = run(of(evaluations=1), prepared(sft, tmp_path / "set", kind), tmp_path)
    test = done["test"]
    assert test["comparisons"] == 24 and test["pairs"] == (24 if kind == "pairs" else 12 + 3 * 12)
    assert test["accuracy"]["value"] > 0.6


def test_accumulation_changes_nothing(folders: Folders, tmp_path: Path) -> None:
    """8x1 == 2x4: the same losses and curves."""
    found = []
    for pieces in (1, 4):
        run(of(accumulation=pieces, lr=1e-3, evaluations=1), folders, tmp_path / str(pieces))
        found.append([row for row in history_of(tmp_path / str(pieces)) if "loss" in row])
    for one, four in zip(*found, strict=True):
        assert {key: pytest.approx(one[key], rel=1e-3, abs=1e-3) for key in ("loss", *CURVES)} == {
            key: four[key] for key in ("loss", *CURVES)
        }


def test_a_killed_run_ends_with_the_bytes_of_an_undisturbed_one(
    trained, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before and behind its checkpoint, and while the last one is being written; and no path is in a byte."""
    calm, _ = trained
    die_thrice(lambda: run(CONFIG, folders, tmp_path), (3, 6), "checkpoint-8", monkeypatch)
    run(CONFIG, folders, tmp_path)
    assert contents(tmp_path / "out") == contents(calm / "out")
    for name, content in contents(tmp_path / "out").items():
        assert str(tmp_path).encode() not in content and str(folders.base).encode() not in content, name


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["reference", "dpo"])
def test_kill_9_at_random_moments_changes_no_byte(stage: str, folders: Folders, tmp_path: Path) -> None:
    """Of the stage as a process: four times in the midst of its work, then it runs to its end."""

    def start(folder: Path) -> subprocess.Popen:
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "tests.tasks.dpo_run", stage, str(folders.base), str(folders.encoded.parent)]
        process = subprocess.Popen([*command, str(folder / "out")], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "works\n"
        return process

    calm = start(tmp_path / "calm")
    began = time.monotonic()
    assert calm.wait(timeout=600) == 0
    seconds, chance = time.monotonic() - began, random.Random(5)
    for _ in range(4):
        process = start(tmp_path / "killed")
        try:
            process.wait(timeout=chance.uniform(0, seconds / 2))
        except subprocess.TimeoutExpired:
            process.kill()
            assert process.wait() == -signal.SIGKILL
    assert start(tmp_path / "killed").wait(timeout=600) == 0
    assert contents(tmp_path / "killed/out") == contents(tmp_path / "calm/out")


# --- alarms and refusals ----------------------------------------------------------------------------------------------


def test_displacement_above_the_key_is_an_alarm_for_each_evaluation() -> None:
    history = [{"step": 4, "loss": 0.6}, {"step": 4, "eval_loss": 0.5, "eval_displacement": 0.2},
               {"step": 8, "eval_loss": 0.6, "eval_displacement": 0.7}]  # fmt: skip
    (one,) = alarms_of(history, 0.5, 4)
    assert (one["step"], one["value"], one["kept"], one["figure"]) == (8, 0.7, False, "displacement")
    assert one["said"] == ("step 8: preferred responses have lost 0.7 nats a token on validation, of weights that are "
                           "not kept; the limit `alarm_displacement` is 0.5")  # fmt: skip
    assert [alarm["kept"] for alarm in alarms_of(history, 0.1, 8)] == [False, True]
    assert alarms_of(history, None, 4) == []


def test_what_makes_no_sense_is_refused(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="loss `cdpo` with label_smoothing 0 is `sigmoid`"):
        of(loss="cdpo")
    with pytest.raises(UsageError, match="dpo: no linear layer of the base is named nothing"):
        run(of(targets=["nothing"]), folders, tmp_path)
    with pytest.raises(UsageError, match="no model folder"):
        run(of(evaluations=1), folders._replace(gold=tmp_path / "no"), tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    for file in folders.encoded.iterdir():
        (empty / file.name).write_bytes(file.read_bytes())
    none = pa.table({name: pa.array([], field.type) for name, field in
                     ((f.name, f) for f in pq.read_schema(empty / "train.parquet"))})  # fmt: skip
    pq.write_table(none, empty / "train.parquet")
    with pytest.raises(DataError, match="train.parquet has no rows"):
        run(CONFIG, folders._replace(encoded=empty), tmp_path / "run")
