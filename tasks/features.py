"""Stage `features_<set>`: the features of the frozen encoder, computed once and cached.

    z_i = masked mean of the hidden states of x_i (pooling `mean`), or what the last layer of the head reads (`cls`)

Feature extraction trains a head on z_i alone, so the encoder runs once a row and never backwards; the head then trains
in seconds (tasks/classify.py, variant `frozen`). Rows are computed in length-sorted batches and written in the row
order of the encoded Parquet: features.safetensors (float32 [N, d] under train, validation, test) and features.json.

Run it: `dvc repro features_reviews`.
"""

import json
from pathlib import Path
from typing import Literal

from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from learning.classifier import build, last_linear, logits_of
from learning.seeds import seed_everything
from tasks._rows import SPLITS, autocast, read_labels, read_rows
from tasks._stage import Compute, Config, start


class FeaturesConfig(Config):
    """Section `features.<set>`."""

    pooling: Literal["cls", "mean"] = Field(
        description="`mean`: mean of the hidden states; `cls`: the head's last input."
    )
    batch_rows: int = Field(ge=1, description="Rows that pass through the encoder at once.")


def features(config: FeaturesConfig, compute: Compute, encoded: Path, base: Path, out: Path) -> dict:
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
    (out / "features.json").write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return {**report, "tokens": sum(sum(rows[split].lengths()) for split in SPLITS)}


class FeatureReader(nn.Module):
    """A classifier that answers with the input of its last linear layer, [B, d], in the place of logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.config = model, model.config
        self.seen: Tensor | None = None
        last_linear(model).register_forward_pre_hook(self._see)

    def _see(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        self.seen = inputs[0]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        self.model(input_ids=input_ids, attention_mask=attention_mask)
        seen = self.seen
        if seen.dim() == 3:  # a GPT-like head scores every token; the last one is the text's summary
            seen = seen[range(len(seen)), attention_mask.sum(dim=1) - 1]
        return SequenceClassifierOutput(logits=seen)


def main() -> None:
    with start("features", FeaturesConfig) as stage:
        encoded, out = (Path("artifacts") / kind / stage.variant for kind in ("encoded", "features"))
        with stage.phase("features"):
            report = features(stage.config, stage.compute, encoded, Path("artifacts/base/encoder"), out)
        stage.count(tokens=report["tokens"])


if __name__ == "__main__":
    main()
