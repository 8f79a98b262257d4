"""One optimiser step of stage `reward`, alone or as one of two processes over gloo.

    python -m tests.invariants.reward_processes FOLDER

FOLDER/instruct and FOLDER/encoded are the base and its rankings. Writes FOLDER/<processes>.pt: the loss, and the
gradients as the optimiser of the first process sees them.
"""

import sys
from pathlib import Path

import torch
from transformers import TrainerCallback, TrainingArguments

from learning import fused, reward
from learning.batching import LengthGroupedSampler
from tasks import reward as stage
from tasks._comparisons import Comparisons, read_comparisons
from tasks._train import _Trainer
from tests.invariants.decoders import gradients
from tests.tasks.test_reward import of

ROWS = 8


class Caught(TrainerCallback):
    """The gradients before they are clipped and spent, and the logged loss."""

    gradients: dict
    loss: float

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients = {name.removeprefix("module."): grad for name, grad in gradients(model).items()}

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.loss = logs.get("loss", getattr(self, "loss", None))


def one_step(folder: Path, processes: int) -> dict:
    """{"loss", "gradients"} of the first step on ROWS comparisons, split over the processes."""
    torch.manual_seed(0)
    model = reward.build(folder / "instruct", reward.Settings(r=4, alpha=8))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    fused.fuse(model)
    rows = Comparisons(read_comparisons(folder / "encoded", "train", model.config).found[:ROWS])
    caught = Caught()
    trainer = _Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder / f"trainer-{processes}"),
            per_device_train_batch_size=ROWS // processes,
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
        data_collator=lambda chosen: stage._collate(model, chosen, of()),
        compute_loss_func=stage._loss,
        callbacks=[caught],
    )
    trainer.sampler = LengthGroupedSampler(rows.tokens(), ROWS // processes, seed=0)
    trainer.train()
    return {"loss": caught.loss, "gradients": caught.gradients}


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    found = one_step(folder, 2)
    if torch.distributed.get_rank() == 0:
        torch.save(found, folder / "2.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
