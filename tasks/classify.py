"""Stages `classify_frozen`, `classify_full`, `classify_lora`: one classifier, adapted in the lecture's three ways.

    L(theta) = -sum_i log p(y_i | x_i; theta)          on the same rows, split and seed

    frozen   feature extraction: the encoder stays as it is, only the head W, b trains, on cached features. Convex, so
             it is solved to its optimum in seconds (learning/head.py).
    full     full fine-tuning: every weight trains.
    lora     h = W0 x + (alpha/r) B A x: W0 stays frozen, only A, B and the head train, under 2 % of the weights.

`task: token` (named entities) and `task: span` (extractive question answering) train the same way, `full` and `lora`.
What is saved: a whole model (frozen, full) or an adapter in PEFT's layout (lora), with history.jsonl and ajuste.json.
With pooling `cls` plain transformers loads it; with `mean` learning.classifier.load does.

Run it: `dvc repro classify_lora`. Killed or interrupted, it goes on from its last checkpoint to the same bytes.
Differs from the paper (Hu et al., 2021): `targets: [all-linear]` adapts every linear layer, not only W_q and W_v.
"""

import json
import time
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from learning.classifier import (
    build,
    count_parameters,
    head_modules,
    last_linear,
    linear_modules,
    load_tokenizer,
    quiet,
    save,
    set_dropout,
    sha256_of,
)
from learning.head import fit_head
from learning.losses import balanced_weights
from learning.seeds import seed_everything
from tasks._objectives import objective_of, scores
from tasks._rows import Collate, Rows, read_encoding, read_labels, read_rows
from tasks._stage import Compute, Config, UsageError, start
from tasks._train import LoopConfig, best_step, train


class SharedConfig(Config):
    """Plain keys of section `classify`."""

    task: Literal["sequence", "token", "span"] = Field(description="What is labelled: texts, word pieces or answers.")
    class_weights: Literal["none", "balanced"] = Field(description="`balanced`: rare classes count more in the loss.")


class FrozenConfig(SharedConfig):
    """Section `classify.frozen`. The pooling is that of the cached features."""

    l2: float = Field(ge=0, description="Strength of the penalty (l2/2) |W|^2 on the head.")
    steps: int = Field(ge=1, description="Most L-BFGS steps.")
    patience: int = Field(ge=1, description="Steps without a better validation loss before it stops.")


class TrainingConfig(LoopConfig, SharedConfig):
    """What full fine-tuning and LoRA share."""

    pooling: Literal["cls", "mean"] = Field(description="What the head reads; plain transformers loads `cls` only.")
    dropout: float = Field(ge=0, lt=1, description="Dropout of the encoder; 0 suits a single pass over the rows.")


class FullConfig(TrainingConfig):
    """Section `classify.full`."""


class LoraConfig(TrainingConfig):
    """Section `classify.lora`."""

    r: int = Field(ge=1, description="Rank of B A.")
    alpha: float = Field(gt=0, description="The update is scaled by alpha/r.")
    lora_dropout: float = Field(ge=0, lt=1, description="Dropout on x before A.")
    targets: list[str] = Field(min_length=1, description="Last names of the adapted layers, or [all-linear].")


EVALUATION_ROWS = 32  # rows of one batch on validation
PEFT_TASKS = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS", "span": "QUESTION_ANS"}
STRATEGIES = {"frozen": FrozenConfig, "full": FullConfig, "lora": LoraConfig}


def classify(
    config: SharedConfig,
    compute: Compute,
    encoded: Path,
    base: Path,
    features: Path | None,
    out: Path,
    checkpoints: Path,
) -> dict:
    """Train the strategy that `config`'s type names and write the model folder `out`.

    features: the cached features, for FrozenConfig only. checkpoints: an existing folder for history.jsonl and
    checkpoints; a run that finds whole ones there goes on from them.
    Returns the card, with `tokens` (trained) and `train_seconds` added. Raises UsageError and DataError.
    """
    seed_everything(compute.seed, compute.threads)
    labels, encoding, base_id = read_labels(encoded), read_encoding(encoded), _base_id(base)
    rows, validation = (read_rows(encoded, split, config.task) for split in ("train", "validation"))
    weights = None
    if config.class_weights == "balanced":
        weights = balanced_weights(rows.flat_labels(), len(labels))
    began = time.monotonic()
    if isinstance(config, FrozenConfig):
        done = _fit(config, features, base, labels, rows, validation, weights, checkpoints)
    else:
        done = _train(config, compute, base, labels, rows, validation, weights, checkpoints)
    seconds = time.monotonic() - began
    best = next(row for row in done.history if row["step"] == done.best_step and "eval_loss" in row)
    card = {
        "task": config.task,
        "strategy": next(name for name, kind in STRATEGIES.items() if type(config) is kind),
        "pooling": done.pooling,
        "labels": labels,
        "max_tokens": encoding["max_tokens"],
        "set": encoding["set"],
        "base": {"id": base_id, "sha256": sha256_of(base / "model.safetensors")},
        "parameters": count_parameters(done.model),
        "validation": {name.removeprefix("eval_"): value for name, value in best.items() if name.startswith("eval_")},
    }
    save(done.model, load_tokenizer(base), out, card)
    (out / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in done.history), encoding="utf-8")
    return {**card, "tokens": done.tokens, "train_seconds": seconds}


class _Done(NamedTuple):
    """A trained model with its history, and the step that its weights come from."""

    model: nn.Module
    history: list[dict]
    best_step: int
    pooling: str
    tokens: int


def _fit(
    config: FrozenConfig,
    features: Path | None,
    base: Path,
    labels: list[str],
    rows: Rows,
    validation: Rows,
    weights: Tensor | None,
    checkpoints: Path,
) -> _Done:
    """Feature extraction: fit the head on cached features and put it on the untouched encoder."""
    if config.task != "sequence":
        raise UsageError(
            f"classify.frozen needs one feature vector a text; for classify.task `{config.task}` use full or lora"
        )
    if features is None or not (features / "features.safetensors").is_file():
        raise UsageError(f"{features}/features.safetensors is missing: run stage `features_reviews`")
    z = load_file(features / "features.safetensors")
    for split, split_rows in (("train", rows), ("validation", validation)):
        if len(z[split]) != len(split_rows):
            raise UsageError(
                f"{features} has {len(z[split])} {split} rows, the encoded set {len(split_rows)}: make it again"
            )
    pooling = json.loads((features / "features.json").read_text(encoding="utf-8"))["pooling"]
    head = fit_head(
        z["train"],
        rows.flat_labels(),
        z["validation"],
        len(labels),
        config.l2,
        config.steps,
        config.patience,
        partial(scores, labels=validation.flat_labels()),
        weights,
    )
    (checkpoints / "history.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in head.history), encoding="utf-8"
    )
    model = build(base, labels, pooling=pooling).requires_grad_(False)
    layer = last_linear(model).requires_grad_(True)
    if layer.bias is None:
        raise UsageError("features.pooling `cls` needs a head with a bias, which this architecture has not: use `mean`")
    with torch.no_grad():
        layer.weight.copy_(head.weight)
        layer.bias.copy_(head.bias)
    return _Done(model, head.history, head.best_step, pooling, len(rows) * len(head.history))


def _train(
    config: TrainingConfig,
    compute: Compute,
    base: Path,
    labels: list[str],
    rows: Rows,
    validation: Rows,
    weights: Tensor | None,
    checkpoints: Path,
) -> _Done:
    """Full fine-tuning, or LoRA with the head trained whole."""
    model = set_dropout(build(base, labels, config.task, config.pooling), config.dropout)
    if isinstance(config, LoraConfig):
        model = add_lora(model, config, base)
    objective = objective_of(config.task, labels, weights)
    history = train(
        model.to(compute.torch_device()),
        rows,
        rows.lengths(),
        Collate(config.task, model.config.pad_token_id),
        lambda current, batch, items: objective.loss(
            current(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]), batch["labels"], items
        ),
        lambda current: objective.evaluate(current, validation, EVALUATION_ROWS),
        objective.metric,
        config,
        compute,
        checkpoints,
    )
    tokens = round(sum(rows.lengths()) * min(history[-1]["step"] * config.batch_rows / len(rows), config.epochs))
    return _Done(model, history, best_step(history, objective.metric), config.pooling, tokens)


def add_lora(model: nn.Module, config: LoraConfig, base: Path) -> nn.Module:
    """The model of learning.classifier.build as a PeftModel: A and B on `config.targets`, its new head whole."""
    with quiet():
        import peft  # takes seconds

    heads = head_modules(model, base)
    try:
        targets = linear_modules(model, config.targets, heads)
    except ValueError as error:
        raise UsageError(f"classify.lora.targets: {error}") from None
    lora = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        modules_to_save=heads,
        fan_in_fan_out=isinstance(model.get_submodule(targets[0]), Conv1D),  # GPT-2 keeps W0 transposed
        task_type=PEFT_TASKS[config.task] if config.pooling == "cls" else None,
    )
    with quiet():
        return peft.get_peft_model(model, lora)


def _base_id(base: Path) -> str:
    try:
        return json.loads((base / "base.json").read_text(encoding="utf-8"))["id"]
    except FileNotFoundError:
        raise UsageError(f"{base / 'base.json'} is missing: run stage `base_encoder`") from None


def main() -> None:
    with start("classify", STRATEGIES) as stage:
        strategy = stage.variant
        out = Path("artifacts/adapters" if strategy == "lora" else "artifacts/merged") / f"classify_{strategy}"
        features = Path("artifacts/features/reviews") if strategy == "frozen" else None
        done = classify(
            stage.config,
            stage.compute,
            Path("artifacts/encoded/reviews"),
            Path("artifacts/base/encoder"),
            features,
            out,
            stage.checkpoints,
        )
        stage.count(tokens=done["tokens"])
        stage.phases["train"] = done["train_seconds"]


if __name__ == "__main__":
    main()
