"""Stage `classify_full`: full fine-tuning, every weight of the encoder and its head trains.

    L(theta) = -sum_i log p(y_i | x_i; theta)

Run it: `dvc repro classify_full`. Killed or interrupted, it goes on from its last checkpoint to the same bytes.
"""

from pathlib import Path

from ajuste.core.params import Compute
from ajuste.core.stage import start
from ajuste.judging.objectives import SEQUENCE, Task
from ajuste.learning.seeds import seed_everything
from ajuste.models.classifier import build
from ajuste.models.layers import set_dropout
from tasks.classify.common import read_inputs, write
from tasks.classify.training import TrainingConfig, train_classifier


class FullConfig(TrainingConfig):
    """Section `classify.full`."""


def full(
    config: FullConfig, compute: Compute, encoded: Path, base: Path, out: Path, checkpoints: Path, task: Task = SEQUENCE
) -> dict:
    """Train every weight and write the model folder `out`; returns the card and `tokens` (trained).

    checkpoints: an existing folder; a run that finds whole ones there goes on from them. Raises UsageError, DataError.
    """
    seed_everything(compute.seed, compute.threads)
    inputs = read_inputs(config, encoded, base, task)
    model = set_dropout(build(base, inputs.labels, task.name, config.pooling), config.dropout)
    done = train_classifier(model, task, config, compute, inputs, checkpoints)
    return write("full", task, inputs, done, base, out)


def main() -> None:
    with start("classify_full", FullConfig, together=True) as stage:
        artifacts = Path("artifacts")
        with stage.phase("train"):
            done = full(
                stage.config, stage.compute, artifacts / "encoded/reviews", artifacts / "base/encoder",
                artifacts / "merged/classify_full", stage.checkpoints,
            )  # fmt: skip
        stage.count(tokens=done["tokens"])


if __name__ == "__main__":
    main()
