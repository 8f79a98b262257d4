"""One optimiser step of tasks/supervised/loop.py's Trainer, alone or as one of several processes over gloo.

    python -m tests.invariants.two_processes OUT.pt

Writes, for full fine-tuning and for LoRA, {"loss", "gradients"} as the optimiser of the first process sees them.
Processes are told by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as torchrun and accelerate tell them.
"""

import sys
import tempfile
from pathlib import Path

import torch
from transformers import TrainerCallback, TrainingArguments

from ajuste.core import world
from ajuste.learning.batching import LengthGroupedSampler
from ajuste.learning.layers import fused, ragged
from tasks.supervised.loop import _Trainer
from tests.invariants.decoders import conversations, decoder, gradients
from tests.invariants.test_ragged import with_lora


class Caught(TrainerCallback):
    """The gradients before they are clipped and spent, and the logged loss."""

    gradients: dict
    loss: float

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients = {name.removeprefix("module."): grad for name, grad in gradients(model).items()}

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.loss = logs.get("loss", getattr(self, "loss", None))


def first_step(model, rows, lengths: list[int], batch_rows: int, accumulation: int, collate, loss) -> dict:
    """{"loss", "gradients"} of the first step: batch_rows rows a piece and process, `accumulation` pieces."""
    caught = Caught()
    with tempfile.TemporaryDirectory() as folder:
        trainer = _Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=batch_rows,
                gradient_accumulation_steps=accumulation,
                max_steps=1,
                logging_steps=1,
                use_cpu=True,
                save_strategy="no",
                remove_unused_columns=False,
                dataloader_pin_memory=False,
                max_grad_norm=0.0,
                disable_tqdm=True,
                report_to="none",
                log_level="error",
            ),
            train_dataset=rows,
            data_collator=collate,
            compute_loss_func=loss,
            callbacks=[caught],
        )
        trainer.sampler, trainer.figures = LengthGroupedSampler(lengths, batch_rows, seed=0), {}
        trainer.shares = batch_rows * accumulation * world.processes(), accumulation
        trainer.train()
    return {"loss": caught.loss, "gradients": caught.gradients}


def one_step(rows: list, batch_rows: int, accumulation: int, lora: bool = False) -> dict:
    """The first step of a decoder on `rows`."""
    model = decoder()
    if lora:
        model = with_lora(model)
        fused.fuse(model)
    ragged.attach(model)
    lengths = [len(ids) for ids, _ in rows]
    return first_step(model, rows, lengths, batch_rows, accumulation, ragged.collate, ragged.response_loss)


def main() -> None:
    torch.set_num_threads(1)
    results = {mode: one_step(conversations(), 4, 1, lora=mode == "lora") for mode in ("full", "lora")}
    if torch.distributed.get_rank() == 0:
        torch.save(results, Path(sys.argv[1]))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
