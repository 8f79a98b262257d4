"""The training of full fine-tuning and LoRA: transformers' Trainer with our batches and our loss.

    L(theta) = -sum_i log p(y_i | x_i; theta)          on the same rows, split and seed

Named entities (task `token`) and extractive question answering (`span`) train the same way, `full` and `lora`: the
studies `ner` and `qa` call these functions with their own task.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field
from torch import nn

from ajuste.core import world
from ajuste.core.params import Compute
from ajuste.judging.objectives import Task
from ajuste.rows.encoded.labelled import Collate
from tasks.classify.common import Done, Inputs, SharedConfig
from tasks.supervised.loop import LoopConfig, best_step, train

EVALUATION_ROWS = 32  # rows of one batch on validation


class TrainingConfig(LoopConfig, SharedConfig):
    """What full fine-tuning and LoRA share."""

    pooling: Literal["cls", "mean"] = Field(description="What the head reads; plain transformers loads `cls` only.")
    dropout: float = Field(ge=0, lt=1, description="Dropout of the encoder; 0 suits a single pass over the rows.")


def train_classifier(
    model: nn.Module, task: Task, config: TrainingConfig, compute: Compute, inputs: Inputs, checkpoints: Path
) -> Done:
    """Train what of `model` is trainable, with checkpoints in an existing folder; a run that finds whole ones there
    goes on from them."""
    rows, objective = inputs.rows, task.objective(inputs.labels, inputs.weights)
    history = train(
        model.to(compute.torch_device()),
        rows,
        rows.lengths(),
        Collate(task.name, model.config.pad_token_id),
        lambda current, batch, items: objective.loss(
            current(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]), batch["labels"], items
        ),
        lambda current: objective.evaluate(current, inputs.validation, EVALUATION_ROWS),
        objective.metric,
        config,
        compute,
        checkpoints,
    )
    world.first_goes_on()
    tokens = round(sum(rows.lengths()) * min(history[-1]["step"] * config.batch_rows / len(rows), config.epochs))
    return Done(model, history, best_step(history, objective.metric), config.pooling, tokens)
