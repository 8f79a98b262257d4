"""Stage `classify_frozen`: feature extraction. The encoder stays as it is, only the head W, b trains.

    min over W, b of  -sum_i log p(y_i | z_i; W, b) + (l2/2) |W|^2        z_i: cached features of x_i

Convex, so it is solved to its optimum in seconds (ajuste/learning/head.py). Run it: `dvc repro classify_frozen`.
"""

import json
from functools import partial
from pathlib import Path

import torch
from pydantic import Field
from safetensors.torch import load_file

from ajuste.core.errors import UsageError
from ajuste.core.params import Compute
from ajuste.core.stage import start
from ajuste.judging.objectives import SEQUENCE, scores
from ajuste.learning.head import fit_head
from ajuste.learning.seeds import seed_everything
from ajuste.models.classifier import build, last_linear
from tasks.classify.common import Done, Inputs, SharedConfig, read_inputs, write


class FrozenConfig(SharedConfig):
    """Section `classify.frozen`. The pooling is that of the cached features."""

    l2: float = Field(ge=0, description="Strength of the penalty (l2/2) |W|^2 on the head.")
    steps: int = Field(ge=1, description="Most L-BFGS steps.")
    patience: int = Field(ge=1, description="Steps without a better validation loss before it stops.")


def frozen(
    config: FrozenConfig, compute: Compute, encoded: Path, base: Path, features: Path, out: Path, checkpoints: Path
) -> dict:
    """Fit the head on the cached `features` and write the model folder `out`; returns the card and `tokens`.

    checkpoints: an existing folder for history.jsonl. Raises UsageError and DataError.
    """
    seed_everything(compute.seed, compute.threads)
    inputs = read_inputs(config, encoded, base, SEQUENCE)
    return write("frozen", SEQUENCE, inputs, _fit(config, features, base, inputs, checkpoints), base, out)


def _fit(config: FrozenConfig, features: Path, base: Path, inputs: Inputs, checkpoints: Path) -> Done:
    """Feature extraction: fit the head on cached features and put it on the untouched encoder."""
    labels, rows, validation = inputs.labels, inputs.rows, inputs.validation
    if not (features / "features.safetensors").is_file():
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
        inputs.weights,
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
    return Done(model, head.history, head.best_step, pooling, len(rows) * len(head.history))


def main() -> None:
    with start("classify_frozen", FrozenConfig) as stage:
        artifacts = Path("artifacts")
        with stage.phase("train"):
            done = frozen(
                stage.config, stage.compute, artifacts / "encoded/reviews", artifacts / "base/encoder",
                artifacts / "features/reviews", artifacts / "merged/classify_frozen", stage.checkpoints,
            )  # fmt: skip
        stage.count(tokens=done["tokens"])


if __name__ == "__main__":
    main()
