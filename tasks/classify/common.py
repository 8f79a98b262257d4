"""What the three ways of adapting a classifier share: their rows, the card and the model folder that they write.

What is saved: a whole model (frozen, full) or an adapter in PEFT's layout (lora), with history.jsonl and ajuste.json.
With pooling `cls` plain transformers loads it; with `mean` ajuste.models.classifier.load does.

Nothing here trains: transformers' Trainer takes seconds to import, and the frozen encoder needs none.
"""

import json
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field
from torch import Tensor, nn

from ajuste.core.errors import UsageError
from ajuste.core.figures import write_lines
from ajuste.core.params import Config
from ajuste.judging.objectives import Task
from ajuste.learning.losses.cross_entropy import balanced_weights
from ajuste.models.classifier import save
from ajuste.models.folder import load_tokenizer, sha256_of
from ajuste.models.layers import count_parameters
from ajuste.rows.encoded.labelled import Rows, read_encoding, read_labels, read_rows


class SharedConfig(Config):
    """Plain keys of section `classify`."""

    class_weights: Literal["none", "balanced"] = Field(description="`balanced`: rare classes count more in the loss.")


class Inputs(NamedTuple):
    """What a classifier is trained on: label names, encoding.json, the base's id, rows, and weights of the classes."""

    labels: list[str]
    encoding: dict
    base_id: str
    rows: Rows
    validation: Rows
    weights: Tensor | None


class Done(NamedTuple):
    """A trained model with its history, and the step that its weights come from."""

    model: nn.Module
    history: list[dict]
    best_step: int
    pooling: str
    tokens: int


def read_inputs(config: SharedConfig, encoded: Path, base: Path, task: Task) -> Inputs:
    """Raises UsageError for a missing input, DataError for a split without rows."""
    labels = read_labels(encoded)
    rows, validation = (read_rows(encoded, split, task.name) for split in ("train", "validation"))
    weights = None
    if config.class_weights == "balanced":
        weights = balanced_weights(rows.flat_labels(), len(labels))
    return Inputs(labels, read_encoding(encoded), _base_id(base), rows, validation, weights)


def write(strategy: str, task: Task, inputs: Inputs, done: Done, base: Path, out: Path) -> dict:
    """Write the model folder `out`: weights or adapter, tokenizer, card and history. Returns the card and the
    tokens."""
    best = next(row for row in done.history if row["step"] == done.best_step and "eval_loss" in row)
    card = {
        "task": task.name,
        "strategy": strategy,
        "pooling": done.pooling,
        "labels": inputs.labels,
        "max_tokens": inputs.encoding["max_tokens"],
        "set": inputs.encoding["set"],
        "base": {"id": inputs.base_id, "sha256": sha256_of(base / "model.safetensors")},
        "parameters": count_parameters(done.model),
        "validation": {name.removeprefix("eval_"): value for name, value in best.items() if name.startswith("eval_")},
    }
    save(done.model, load_tokenizer(base), out, card)
    write_lines(out / "history.jsonl", done.history)
    return {**card, "tokens": done.tokens}


def _base_id(base: Path) -> str:
    try:
        return json.loads((base / "base.json").read_text(encoding="utf-8"))["id"]
    except FileNotFoundError:
        raise UsageError(f"{base / 'base.json'} is missing: run stage `base_encoder`") from None
