"""The three strategies on a tiny encoder: what they save, that they learn, and that a resumed run ends the same."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ajuste.core.errors import UsageError
from ajuste.core.figures import rounded
from ajuste.core.params import Compute
from ajuste.judging.words import TOKEN
from ajuste.models.classifier import load, load_adapter, predict
from ajuste.models.folder import load_tokenizer
from tasks.classify.frozen import FrozenConfig
from tasks.classify.full import FullConfig, full
from tasks.classify.lora import LoraConfig
from tasks.features.reviews import ReviewsConfig, features
from tasks.supervised import loop
from tests.made.killed import die_thrice, interrupt
from tests.made.tiny_classifiers import tiny_base
from tests.made.tiny_rows import sentence_set
from tests.made.trained import classify

COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)
SHARED = {"class_weights": "none"}
TRAINING = {
    **SHARED,
    "pooling": "cls",
    "lr": 3e-3,
    "warmup": 0.1,
    "epochs": 2,
    "batch_rows": 8,
    "accumulation": 1,
    "weight_decay": 0.01,
    "dropout": 0.1,
    "max_grad_norm": 1.0,
    "evaluations": 2,
    "patience": 3,
}
FULL = FullConfig(**TRAINING)
LORA = LoraConfig(**{**TRAINING, "lr": 1e-2}, r=4, alpha=8, lora_dropout=0.0, targets=["all-linear"])
FROZEN = FrozenConfig(**SHARED, l2=0.01, steps=50, patience=20)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base") / "encoder")


@pytest.fixture(scope="module")
def encoded(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentence_set(tmp_path_factory.mktemp("set") / "encoded", load_tokenizer(base))


def run(config, encoded: Path, base: Path, folder: Path, features: Path | None = None) -> dict:
    """One training in `folder`/out with checkpoints in `folder`/checkpoints."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    return classify(config, encoded, base, features, folder / "out", folder / "checkpoints")


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def history(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def cached(encoded: Path, base: Path, folder: Path, pooling: str = "mean") -> Path:
    features(ReviewsConfig(pooling=pooling, batch_rows=8), COMPUTE, encoded, base, folder)
    return folder


# --- what is saved ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("config", [FULL, LORA], ids=["full", "lora"])
def test_it_learns_and_what_it_saves_answers_as_it_did(config, pooling: str, base: Path, tmp_path: Path):
    encoded = sentence_set(tmp_path / "encoded", load_tokenizer(base), train=200)
    config = config.model_copy(update={"pooling": pooling, "epochs": 8, "patience": 9, "evaluations": 1})
    card = run(config, encoded, base, tmp_path)
    assert card["validation"]["accuracy"] > 0.8
    adapted = isinstance(config, LoraConfig)
    model, tokenizer, saved = load_adapter(base, tmp_path / "out") if adapted else load(tmp_path / "out")
    assert saved["labels"] == ["negative", "positive"] and model.config.id2label == {0: "negative", 1: "positive"}
    probabilities = predict(model, tokenizer, saved, ["the film was good", "the plot is dull and the scene was slow"])
    assert probabilities.argmax(dim=1).tolist() == [1, 0]
    assert torch.allclose(probabilities.sum(dim=1), torch.ones(2))
    rows = history(tmp_path / "out")
    assert {"step", "loss", "lr", "grad_norm"} == set(rows[0])
    assert any("eval_macro_f1" in row for row in rows)
    assert rows == rounded(history(tmp_path / "checkpoints")), "what people read has six digits, a checkpoint has all"


def test_plain_transformers_loads_the_full_model(encoded: Path, base: Path, tmp_path: Path) -> None:
    from transformers import pipeline

    run(FULL, encoded, base, tmp_path)
    answer = pipeline("text-classification", model=str(tmp_path / "out"), device="cpu")("the film was good")
    assert answer[0]["label"] in ("negative", "positive")


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_frozen_strategy_leaves_the_encoder_alone(pooling: str, encoded: Path, base: Path, tmp_path: Path) -> None:
    cache = cached(encoded, base, tmp_path / "features", pooling)
    card = run(FROZEN, encoded, base, tmp_path, cache)
    assert card["strategy"] == "frozen" and card["pooling"] == pooling
    assert card["parameters"]["trainable"] == 2 * 32 + 2
    assert card["validation"]["accuracy"] > 0.7
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in before.items():
        assert torch.equal(tensor, after.get(name, after.get(f"bert.{name}"))), name
    if pooling == "mean":
        assert (tmp_path / "out" / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


def test_cached_features_with_the_head_are_the_saved_models_logits(encoded: Path, base: Path, tmp_path: Path) -> None:
    from ajuste.models.classifier import logits_of
    from ajuste.rows.encoded.labelled import read_rows

    for pooling in ("cls", "mean"):
        cache = cached(encoded, base, tmp_path / pooling, pooling)
        run(FROZEN, encoded, base, tmp_path / f"run-{pooling}", cache)
        model, _, _ = load(tmp_path / f"run-{pooling}" / "out")
        head = model.head if pooling == "mean" else model.classifier
        z = load_file(cache / "features.safetensors")["test"]
        expected = logits_of(model, read_rows(encoded, "test", "sequence").ids, 4)
        assert torch.allclose(z @ head.weight.T + head.bias, expected, atol=1e-3)  # the pooler's head has large weights


def test_lora_trains_a_few_weights_and_its_folder_names_no_path(encoded: Path, base: Path, tmp_path: Path) -> None:
    config = LORA.model_copy(update={"targets": ["query", "value"], "r": 2})
    card = run(config, encoded, base, tmp_path)
    # A and B of W_q and W_v in both layers, and the head
    assert card["parameters"]["trainable"] == 2 * 2 * 2 * (32 + 32) + 2 * 32 + 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "ajuste.json",
        "history.jsonl",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    for name, content in files(tmp_path / "out").items():
        assert str(tmp_path).encode() not in content and str(base).encode() not in content, name


def test_two_runs_give_the_same_bytes(encoded: Path, base: Path, tmp_path: Path) -> None:
    for config in (FULL, LORA):
        name = type(config).__name__
        run(config, encoded, base, tmp_path / name / "a")
        run(config, encoded, base, tmp_path / name / "b")
        assert files(tmp_path / name / "a" / "out") == files(tmp_path / name / "b" / "out")


# --- accumulation, weights, stopping ---------------------------------------------------------------------------------


def test_accumulation_changes_nothing(encoded: Path, base: Path, tmp_path: Path) -> None:
    """8x1 == 4x2 == 1x8 over a whole training: same losses, same weights, with rows of unequal length."""
    # without dropout, whose draws differ with the shape of a batch
    config = FULL.model_copy(update={"class_weights": "balanced", "dropout": 0.0})
    losses, weights = [], []
    for pieces in (1, 2, 8):
        run(config.model_copy(update={"accumulation": pieces}), encoded, base, tmp_path / str(pieces))
        losses.append([row["loss"] for row in history(tmp_path / str(pieces) / "out") if "loss" in row])
        weights.append(load_file(tmp_path / str(pieces) / "out" / "model.safetensors"))
    for other in (1, 2):
        assert losses[other][0] == pytest.approx(losses[0][0], abs=2e-6)
        assert losses[other] == pytest.approx(losses[0], abs=1e-5)
        for name, tensor in weights[0].items():
            if "key.bias" not in name:  # softmax does not see it: its gradient is rounding noise, which Adam blows up
                assert torch.allclose(tensor, weights[other][name], atol=1e-3), name


def test_early_stopping_restores_the_best_evaluation(encoded: Path, base: Path, tmp_path: Path) -> None:
    config = FULL.model_copy(update={"lr": 0.3, "epochs": 6, "patience": 2})  # a rate that spoils the model at once
    card = run(config, encoded, base, tmp_path)
    rows = history(tmp_path / "out")
    best = loop.best_step(rows, "macro_f1")
    assert loop.stale_evaluations(rows, "macro_f1") == 2 and rows[-1]["step"] < 6 * 8
    evaluated = next(row for row in rows if row["step"] == best and "eval_loss" in row)
    assert rounded(card["validation"]["loss"]) == evaluated["eval_loss"]
    from ajuste.judging.objectives import evaluate_sequence
    from ajuste.rows.encoded.labelled import read_rows

    model, _, _ = load(tmp_path / "out")
    again = evaluate_sequence(model, read_rows(encoded, "validation", "sequence"), 32)
    assert again["loss"] == pytest.approx(evaluated["eval_loss"], rel=1e-5)


def test_best_step_breaks_ties_by_loss_then_by_the_earlier() -> None:
    rows = [
        {"step": s, "eval_f1": f, "eval_loss": loss}
        for s, f, loss in [(1, 0.5, 1.0), (2, 0.7, 0.9), (3, 0.7, 0.8), (4, 0.7, 0.8), (5, 0.6, 0.1)]
    ]
    assert loop.best_step(rows, "f1") == 3
    assert loop.stale_evaluations(rows, "f1") == 2


# --- kill and resume -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [FULL, LORA], ids=["full", "lora"])
def test_a_killed_run_ends_with_the_bytes_of_an_undisturbed_one(
    config, encoded: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the first epoch, in the second, and while a checkpoint is being written."""
    run(config, encoded, base, tmp_path / "calm")
    die_thrice(lambda: run(config, encoded, base, tmp_path / "killed"), (6, 11), "checkpoint-12", monkeypatch)
    assert (tmp_path / "killed" / "checkpoints" / "checkpoint-12").is_dir()
    run(config, encoded, base, tmp_path / "killed")
    assert files(tmp_path / "killed" / "out") == files(tmp_path / "calm" / "out")


def test_a_run_killed_after_its_last_checkpoint_trains_no_further(encoded: Path, base: Path, tmp_path: Path) -> None:
    config = FULL.model_copy(update={"lr": 0.3, "epochs": 6, "patience": 2})
    run(config, encoded, base, tmp_path)
    before = files(tmp_path / "out")
    run(config, encoded, base, tmp_path)  # its checkpoints are still there: as if killed before the model was saved
    assert files(tmp_path / "out") == before


def test_without_its_best_checkpoint_a_run_begins_again(encoded: Path, base: Path, tmp_path: Path) -> None:
    """The last checkpoint alone cannot give back the best weights; a spoilt best one must not go unnoticed."""
    config = FULL.model_copy(update={"lr": 0.3, "epochs": 6, "patience": 2})
    run(config, encoded, base, tmp_path)
    before = files(tmp_path / "out")
    best = loop.best_step(history(tmp_path / "out"), "macro_f1")
    weights = tmp_path / "checkpoints" / f"checkpoint-{best}" / "trained.safetensors"
    assert len(list((tmp_path / "checkpoints").glob("checkpoint-*"))) == 2
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    run(config, encoded, base, tmp_path)
    assert files(tmp_path / "out") == before


def test_a_signal_leaves_a_checkpoint_and_the_next_run_goes_on(
    encoded: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(LORA, encoded, base, tmp_path / "calm")
    interrupt(lambda: run(LORA, encoded, base, tmp_path / "stopped"), 5, monkeypatch)
    assert (tmp_path / "stopped" / "checkpoints" / "checkpoint-6" / "COMPLETE").is_file()
    run(LORA, encoded, base, tmp_path / "stopped")
    assert files(tmp_path / "stopped" / "out") == files(tmp_path / "calm" / "out")


@pytest.mark.slow
def test_kill_minus_nine_of_the_process(encoded: Path, base: Path, tmp_path: Path) -> None:
    config = FULL.model_copy(update={"epochs": 12, "patience": 1000})
    run(config, encoded, base, tmp_path / "calm")
    code = (
        "import sys; from pathlib import Path; from tests.tasks.test_classify import *;"
        "run(FULL.model_copy(update={'epochs': 12, 'patience': 1000}), *map(Path, sys.argv[1:4]))"
    )
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(encoded), str(base), str(folder)],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not list((folder / "checkpoints").glob("checkpoint-*/COMPLETE")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it should have been killed while it trained"
    run(config, encoded, base, folder)
    assert files(folder / "out") == files(tmp_path / "calm" / "out")


# --- what is refused -------------------------------------------------------------------------------------------------


def test_wrong_settings_are_named(encoded: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_rows 8 cannot be cut into accumulation 3"):
        FullConfig(**{**TRAINING, "accumulation": 3})
    with pytest.raises(UsageError, match="no linear layer of the base is named nope: it has dense, key, query, value"):
        run(LORA.model_copy(update={"targets": ["nope"]}), encoded, base, tmp_path / "a")
    with pytest.raises(UsageError, match="features.safetensors is missing: run stage `features_reviews`"):
        run(FROZEN, encoded, base, tmp_path / "b", tmp_path / "none")
    with pytest.raises(UsageError, match="base.json is missing: run stage `base_encoder`"):
        run(FULL, encoded, tmp_path, tmp_path / "c")
    (tmp_path / "d").mkdir()
    with pytest.raises(UsageError, match="train.parquet has no column `labels`: it is not encoded for task `token`"):
        full(FULL, COMPUTE, encoded, base, tmp_path / "d/out", tmp_path / "d", TOKEN)
    with pytest.raises(UsageError, match="training diverged: the loss of step .* is no number: lower `lr`"):
        run(FULL.model_copy(update={"lr": 1e30, "max_grad_norm": 1e30}), encoded, base, tmp_path / "e")


def test_features_of_another_set_are_refused(encoded: Path, base: Path, tmp_path: Path) -> None:
    other = sentence_set(tmp_path / "other", load_tokenizer(base), train=40)
    with pytest.raises(UsageError, match="has 40 train rows, the encoded set 60"):
        run(FROZEN, encoded, base, tmp_path, cached(other, base, tmp_path / "features"))
