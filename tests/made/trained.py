"""One training of a classifier, by the strategy that the config's type names."""

from pathlib import Path

from ajuste.core.params import Compute
from ajuste.judging.objectives import SEQUENCE, Task
from tasks.classify.common import SharedConfig
from tasks.classify.frozen import FrozenConfig, frozen
from tasks.classify.full import full
from tasks.classify.lora import LoraConfig, lora

COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)


def classify(
    config: SharedConfig, encoded: Path, base: Path, features: Path | None, out: Path, checkpoints: Path,
    task: Task = SEQUENCE,
) -> dict:  # fmt: skip
    """The card of the model folder that is written to `out`."""
    if isinstance(config, FrozenConfig):
        return frozen(config, COMPUTE, encoded, base, features, out, checkpoints)
    train = lora if isinstance(config, LoraConfig) else full
    return train(config, COMPUTE, encoded, base, out, checkpoints, task)
