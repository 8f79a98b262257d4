"""Stage `classify_lora`: h = W0 x + (alpha/r) B A x. W0 stays frozen, only A, B and the head train, under 2 % of the
weights.

Run it: `dvc repro classify_lora`. Killed or interrupted, it goes on from its last checkpoint to the same bytes.
Differs from the paper (Hu et al., 2021): `targets: [all-linear]` adapts every linear layer, not only W_q and W_v.
"""

from pathlib import Path

from pydantic import Field
from torch import nn
from transformers.pytorch_utils import Conv1D

from ajuste.core.errors import UsageError
from ajuste.core.params import Compute
from ajuste.core.stage import start
from ajuste.judging.objectives import SEQUENCE, Task
from ajuste.learning.seeds import seed_everything
from ajuste.models import experts
from ajuste.models.classifier import build, head_modules
from ajuste.models.folder import quiet
from ajuste.models.layers import linear_modules, set_dropout
from tasks.classify.common import read_inputs, write
from tasks.classify.training import TrainingConfig, train_classifier

PEFT_TASKS = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS", "span": "QUESTION_ANS"}


class LoraConfig(TrainingConfig):
    """Section `classify.lora`."""

    r: int = Field(ge=1, description="Rank of B A.")
    alpha: float = Field(gt=0, description="The update is scaled by alpha/r.")
    lora_dropout: float = Field(ge=0, lt=1, description="Dropout on x before A.")
    targets: list[str] = Field(min_length=1, description="Last names of the adapted layers, or [all-linear].")


def lora(
    config: LoraConfig, compute: Compute, encoded: Path, base: Path, out: Path, checkpoints: Path, task: Task = SEQUENCE
) -> dict:
    """Train A, B and the head and write the adapter folder `out`; returns the card and `tokens` (trained).

    checkpoints: an existing folder; a run that finds whole ones there goes on from them. Raises UsageError, DataError.
    """
    seed_everything(compute.seed, compute.threads)
    inputs = read_inputs(config, encoded, base, task)
    model = set_dropout(build(base, inputs.labels, task.name, config.pooling), config.dropout)
    model = add_lora(model, task, config, base)
    done = train_classifier(model, task, config, compute, inputs, checkpoints)
    return write("lora", task, inputs, done, base, out)


def add_lora(model: nn.Module, task: Task, config: LoraConfig, base: Path) -> nn.Module:
    """The model of ajuste.models.classifier.build as a PeftModel: A and B on `config.targets`, its new head whole."""
    with quiet():
        import peft  # takes seconds

    heads = head_modules(model, base)
    try:
        targets = linear_modules(model, config.targets, heads)
        parameters = [] if config.lora_dropout else experts.targets_of(model, tuple(config.targets), True).parameters
    except ValueError as error:
        raise UsageError(f"classify.lora.targets: {error}") from None
    settings = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        target_parameters=parameters or None,
        modules_to_save=heads,
        fan_in_fan_out=isinstance(model.get_submodule(targets[0]), Conv1D),  # GPT-2 keeps W0 transposed
        task_type=PEFT_TASKS[task.name] if config.pooling == "cls" else None,
    )
    with quiet():
        adapted = peft.get_peft_model(model, settings)
    experts.told(adapted)
    return adapted


def main() -> None:
    with start("classify_lora", LoraConfig, together=True) as stage:
        artifacts = Path("artifacts")
        with stage.phase("train"):
            done = lora(
                stage.config, stage.compute, artifacts / "encoded/reviews", artifacts / "base/encoder",
                artifacts / "adapters/classify_lora", stage.checkpoints,
            )  # fmt: skip
        stage.count(tokens=done["tokens"])


if __name__ == "__main__":
    main()
