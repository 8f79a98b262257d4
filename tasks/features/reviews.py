"""Stage `features_reviews`: the features of the frozen encoder, computed once and cached.

    z_i = masked mean of the hidden states of x_i (pooling `mean`), or what the last layer of the head reads (`cls`)

Feature extraction trains a head on z_i alone, so the encoder runs once a row and never backwards; the head then trains
in seconds (tasks/classify/frozen.py). Rows are computed in length-sorted batches and written in the
row order of the encoded Parquet: features.safetensors (float32 [N, d] under train, validation, test) and features.json.

Run it: `dvc repro features_reviews`.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field
from safetensors.torch import save_file

from ajuste.core.figures import write_json
from ajuste.core.params import Compute, Config
from ajuste.core.stage import start
from ajuste.learning.seeds import seed_everything
from ajuste.models.classifier import build, logits_of
from ajuste.models.features import FeatureReader
from ajuste.rows.encoded.labelled import SPLITS, autocast, read_labels, read_rows


class ReviewsConfig(Config):
    """Section `features.reviews`."""

    pooling: Literal["cls", "mean"] = Field(
        description="`mean`: mean of the hidden states; `cls`: the head's last input."
    )
    batch_rows: int = Field(ge=1, description="Rows that pass through the encoder at once.")


def features(config: ReviewsConfig, compute: Compute, encoded: Path, base: Path, out: Path) -> dict:
    """Write features.safetensors and features.json into `out`; return the latter and the number of tokens read."""
    seed_everything(compute.seed, compute.threads)
    model = build(base, read_labels(encoded), pooling=config.pooling).to(compute.torch_device()).eval()
    reader = FeatureReader(model)
    rows = {split: read_rows(encoded, split, "sequence") for split in SPLITS}
    with autocast(compute):
        tensors = {split: logits_of(reader, rows[split].ids, config.batch_rows) for split in SPLITS}
    report = {
        "pooling": config.pooling,
        "d": tensors["train"].shape[1],
        "rows": {split: len(rows[split]) for split in SPLITS},
    }
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "features.safetensors")
    write_json(out / "features.json", report, sort_keys=True)
    return {**report, "tokens": sum(sum(rows[split].lengths()) for split in SPLITS)}


def main() -> None:
    with start("features_reviews", ReviewsConfig) as stage:
        artifacts = Path("artifacts")
        with stage.phase("features"):
            report = features(
                stage.config, stage.compute, artifacts / "encoded/reviews", artifacts / "base/encoder",
                artifacts / "features/reviews",
            )  # fmt: skip
        stage.count(tokens=report["tokens"])


if __name__ == "__main__":
    main()
