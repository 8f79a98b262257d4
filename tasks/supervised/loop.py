"""The training loop of all supervised stages: transformers' Trainer, told when to evaluate, save and stop.

What is ours around it:
    order        length-sorted batches whose order is a function of (seed, epoch): ajuste/learning/batching.py
    loss         the stage's own, divided by the items of the whole optimiser step, so accumulation is exact
    history      one row a step and one an evaluation in <checkpoints>/history.jsonl, without a clock; always derived
                 from Trainer's own log, which is part of each checkpoint, so a resumed run ends with the same file.
                 A loss may bring figures of its own: they stand in the step's row
    checkpoints  after each evaluation, sealed (ajuste/core/checkpoints.py); the best and the last are kept. Of the
                 weights they hold those that train: the others are the base's
    stopping     after `patience` evaluations without a better one; the best weights are restored
    interrupts   SIGINT or SIGTERM: checkpoint after the running step, then KeyboardInterrupt; a second stops at once

A run that was killed goes on from its last whole checkpoint and ends with the same weights, bit for bit.
Several processes (ajuste/core/world.py) divide the rows of each step (shares.py), so a step is the configured one; all
evaluate and go by what the first one found, and the first one alone writes.
Early stopping is decided from the history and not by Trainer's callback, whose counter a resume sets back to zero.
"""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import torch
from pydantic import Field, model_validator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ajuste.core import room, world
from ajuste.core.checkpoints import is_complete, last_complete, seal
from ajuste.core.errors import UsageError
from ajuste.core.interrupts import Interrupt, interruptible
from ajuste.core.params import Compute, Config
from ajuste.learning.batching import LengthGroupedSampler
from ajuste.learning.losses.cross_entropy import IGNORED
from ajuste.models.folder import quiet
from tasks.supervised.shares import Shares, loader, rows_of_a_batch

Figures = dict[str, Tensor]  # of a batch, by name: scalars that add up to those of the step
# (model, batch, items) -> scalar, alone or with figures
Loss = Callable[[nn.Module, dict[str, Tensor], Tensor | int | None], Tensor | tuple[Tensor, Figures]]
WEIGHTS = "trained.safetensors"
KEPT = 3  # checkpoints that stand at once: the best, the last, and the next while it is written
OTHER_RANK = 1_000_003  # between the seeds of two processes' dropout
FIGURES = "figures"  # their place in Trainer's log
NAMES = {"loss": "loss", "learning_rate": "lr", "grad_norm": "grad_norm"}  # Trainer's name -> ours


class LoopConfig(Config):
    """What a stage's section of params.yaml says about the loop."""

    lr: float = Field(gt=0, description="Highest learning rate; it falls linearly to 0.")
    warmup: float = Field(ge=0, lt=1, description="Share of the steps in which the rate rises from 0.")
    epochs: int = Field(ge=1, description="Passes over the training rows.")
    batch_rows: int = Field(ge=1, description="Rows of one optimiser step, of all processes together.")
    accumulation: int = Field(
        ge=1, description="Pieces that a step's rows are cut into, to save memory; no effect else."
    )
    weight_decay: float = Field(ge=0, description="AdamW's decay, not applied to biases and norms.")
    max_grad_norm: float = Field(gt=0, description="Longer gradients are cut to this norm.")
    evaluations: int = Field(ge=1, description="Evaluations on validation, each with a checkpoint, per epoch.")
    patience: int = Field(ge=1, description="Evaluations without a better one before training stops.")

    @model_validator(mode="after")
    def _pieces(self) -> Self:
        if self.batch_rows % self.accumulation:
            raise ValueError(f"batch_rows {self.batch_rows} cannot be cut into accumulation {self.accumulation} pieces")
        return self


def train(
    model: nn.Module,
    rows: Dataset,
    lengths: Sequence[int],
    collate: Callable[[list], dict[str, Tensor]],
    compute_loss: Loss,
    evaluate: Callable[[nn.Module], dict[str, float]],
    metric: str,
    config: LoopConfig,
    compute: Compute,
    checkpoints: Path,
) -> list[dict]:
    """Train `model` in place and return its history; it ends with the weights of the best evaluation.

    lengths: tokens of each row. collate(list of rows) -> batch with `labels`, of which those that are not -100 are the
    items. compute_loss(model, batch, items) -> sum over the batch / items, the items of the whole optimiser step, or
    that with figures for the history.
    evaluate(model) -> {"loss": ..., metric: ..., ...}; a higher `metric` is better (a lower one if it is the loss), the
    lower loss decides between equals.
    Raises UsageError when the loss is no number any more or the rows of a step cannot be divided over the processes,
    KeyboardInterrupt when interrupted (a checkpoint is kept).
    """
    steps_per_epoch = math.ceil(len(rows) / config.batch_rows)
    follow = _Follow(checkpoints, metric, config.patience, every=math.ceil(steps_per_epoch / config.evaluations))
    with quiet():
        trainer = _Trainer(
            model=model,
            args=_arguments(config, compute, checkpoints),
            train_dataset=rows,
            data_collator=collate,
            compute_loss_func=compute_loss,  # tells Trainer to count the items and to leave the scale alone
            callbacks=[follow],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.sampler = LengthGroupedSampler(lengths, config.batch_rows, compute.seed)
        trainer.measure, trainer.figures = evaluate, {}
        trainer.shares = (config.batch_rows, config.accumulation)
        if world.first():
            _resumable(checkpoints, metric)  # removes what is spoilt before the others look
        world.wait()
        checkpoint = _resumable(checkpoints, metric)
        if checkpoint is None and world.first():
            room.ask({checkpoints: room.for_training(model.parameters(), KEPT)}, "the checkpoints of this training")
        if checkpoint is None or follow.unfinished(_history_of(checkpoint)):
            with interruptible() as follow.interrupt:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            history = follow.history
        else:
            history = _history_of(checkpoint)
        trainer._load_from_checkpoint(str(checkpoints / f"checkpoint-{best_step(history, metric)}"))
    return history


def best_step(history: list[dict], metric: str) -> int:
    """The step of the best evaluation: highest `metric` (lowest if it is the loss), then lowest loss, then earliest."""
    evaluations = [row for row in history if "eval_loss" in row]
    sign = -1 if metric == "loss" else 1
    return max(evaluations, key=lambda row: (sign * row[f"eval_{metric}"], -row["eval_loss"], -row["step"]))["step"]


def stale_evaluations(history: list[dict], metric: str) -> int:
    """Evaluations since the best one."""
    steps = [row["step"] for row in history if "eval_loss" in row]
    return sum(step > best_step(history, metric) for step in steps)


class _Trainer(Trainer):
    """Trainer with our loss, batch order, division of a step and evaluation (the last three are set right after it is
    made), and with checkpoints of the trained weights alone. figures: those of the running step so far."""

    sampler: LengthGroupedSampler
    shares: tuple[int, int]  # rows of a step, and the pieces of a process's part
    measure: Callable[[nn.Module], dict[str, float]]
    figures: Figures

    def _get_train_sampler(self, train_dataset=None) -> LengthGroupedSampler:
        return self.sampler

    def get_train_dataloader(self) -> DataLoader:
        if world.processes() == 1:
            return super().get_train_dataloader()
        shares = Shares(self.sampler, *self.shares, world.rank(), world.processes())
        return loader(self.train_dataset, shares, self.data_collator)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None) -> Tensor:
        # rows that only keep the other processes company do not count
        counts = self.accelerator.num_processes == 1 or bool((inputs["labels"] != IGNORED).any())
        loss = self.compute_loss_func(model, inputs, num_items_in_batch)
        if isinstance(loss, tuple):
            loss, found = loss
            found = {name: value.detach() * counts for name, value in found.items()}
            self.figures = {name: value + self.figures.get(name, 0.0) for name, value in found.items()}
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # the items are those of all processes, whose mean DDP takes
        return loss * counts

    def log(self, logs: dict, *rest) -> None:
        if "loss" in logs and self.figures:
            values = self.accelerator.reduce(torch.stack(list(self.figures.values())), "sum").tolist()
            logs = {**logs, FIGURES: dict(zip(self.figures, values, strict=True))}
            self.figures = {}
        super().log(logs, *rest)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            state = self.model.state_dict() if state_dict is None else state_dict
            trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
            save_file({name: state[name].contiguous() for name in sorted(trained)}, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        weights = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(weights[name])

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        self.model.eval()
        measured = world.same(self.measure(self.model))  # what follows from it must be the same everywhere
        metrics = {f"eval_{name}": value for name, value in measured.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _Follow(TrainerCallback):
    """Says when to log, evaluate, save and stop; writes the history and seals the checkpoints."""

    def __init__(self, checkpoints: Path, metric: str, patience: int, every: int):
        self.checkpoints, self.metric, self.patience, self.every = checkpoints, metric, patience, every
        self.history: list[dict] = []
        self.interrupt = Interrupt()

    def unfinished(self, history: list[dict]) -> bool:
        """False if a run with this history had already stopped early."""
        return not any("eval_loss" in row for row in history) or stale_evaluations(history, self.metric) < self.patience

    def on_train_begin(self, args, state, control, **kwargs):
        self.history = _rows_of(state.log_history)
        text = "".join(json.dumps(row) + "\n" for row in self.history)
        if world.first():
            (self.checkpoints / "history.jsonl").write_text(text, encoding="utf-8")
        else:
            torch.manual_seed(args.seed + OTHER_RANK * world.rank())  # other rows, other dropout

    def on_step_end(self, args, state, control, **kwargs):
        due = state.global_step % self.every == 0 or state.global_step == state.max_steps
        control.should_log = True
        control.should_evaluate = due
        control.should_save = world.any_of(due or self.interrupt.asked)

    def on_log(self, args, state, control, **kwargs):
        for row in _rows_of(state.log_history[-1:]):
            if not math.isfinite(row.get("loss", row.get("eval_loss"))):
                raise UsageError(f"training diverged: the loss of step {row['step']} is no number: lower `lr`")
            self.history.append(row)
            if world.first():
                with (self.checkpoints / "history.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")

    def on_evaluate(self, args, state, control, **kwargs):
        if not self.unfinished(self.history):
            control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs):
        world.wait()  # each process has put its random generator's state into the checkpoint
        if world.first():
            self._seal(state)
        world.wait()
        if world.any_of(self.interrupt.asked):
            raise KeyboardInterrupt

    def _seal(self, state) -> None:
        """Declare the newest checkpoint whole, and remove those that are neither it nor the best."""
        last = self.checkpoints / f"checkpoint-{state.global_step}"
        seal(last)
        keep = {last.name}
        if any("eval_loss" in row for row in self.history):
            keep.add(f"checkpoint-{best_step(self.history, self.metric)}")
        for folder in self.checkpoints.glob("checkpoint-*"):
            if folder.name not in keep:
                shutil.rmtree(folder)  # only now that its successor is sealed


def _arguments(config: LoopConfig, compute: Compute, checkpoints: Path) -> TrainingArguments:
    """Trainer's arguments: all `strategy` ones are off because _Follow decides."""
    return TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=rows_of_a_batch(config.batch_rows, config.accumulation, world.processes()),
        gradient_accumulation_steps=config.accumulation,
        num_train_epochs=config.epochs,
        learning_rate=config.lr,
        lr_scheduler_type="linear",
        warmup_steps=config.warmup,  # below 1: a share of all steps
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=compute.dtype == "bfloat16",
        use_cpu=compute.torch_device() == "cpu",
        seed=compute.seed,
        logging_strategy="no",
        eval_strategy="no",
        save_strategy="no",
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
        log_level="error",
    )


def _rows_of(log: list[dict]) -> list[dict]:
    """Trainer's log as history rows: training and evaluation rows only, without Trainer's clock."""
    rows = []
    for entry in log:
        if "loss" in entry:
            figures = dict(sorted(entry.get(FIGURES, {}).items()))  # a checkpoint sorts them too
            rows.append({"step": entry["step"], **{ours: entry[name] for name, ours in NAMES.items()}, **figures})
        elif "eval_loss" in entry:
            names = sorted(name for name in entry if name.startswith("eval_"))
            rows.append({"step": entry["step"], **{name: entry[name] for name in names}})
    return rows


def _history_of(checkpoint: Path) -> list[dict]:
    return _rows_of(json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["log_history"])


def _resumable(checkpoints: Path, metric: str) -> Path | None:
    """The last whole checkpoint, if the best one of its history is whole too; else None, and all are removed."""
    checkpoint = last_complete(checkpoints)
    if checkpoint is None:
        return None
    history = _history_of(checkpoint)
    if any("eval_loss" in row for row in history):
        if not is_complete(checkpoints / f"checkpoint-{best_step(history, metric)}"):
            for folder in checkpoints.glob("checkpoint-*"):
                shutil.rmtree(folder)
            return None
    return checkpoint
