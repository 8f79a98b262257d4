"""Stage `merge_classify`: fold the trained adapter into its base, and prove on the saved bytes that nothing changed.

    W = W0 + (alpha/r) B A          for every adapted matrix; the head that was trained beside it stays as it is

The proof, proof.json, is computed after saving, from disk: the base with the adapter on it and the merged folder
answer the same rows (the whole test split), and the stage fails unless the largest |logit difference| and the share of
equal predictions are within their tolerances. `max_weight_difference` compares the saved matrices with a second
computation of the formula, in float64 and without PEFT (ajuste/learning/lora.py).

Reads   artifacts/adapters/classify_lora, artifacts/base/encoder, artifacts/encoded/reviews
Writes  artifacts/merged/classify_lora: an ordinary model folder with no trace of PEFT, history.jsonl of the training,
        proof.json
Run it: python -m tasks.merge.classify
"""

import json
import shutil
from pathlib import Path
from typing import Literal

import pyarrow.parquet
import torch
from pydantic import Field
from torch import Tensor, nn

from ajuste.core.errors import DataError, UsageError
from ajuste.core.params import Compute, Config
from ajuste.core.stage import start
from ajuste.learning import batching, lora
from ajuste.learning.seeds import seed_everything
from ajuste.models import classifier, experts
from ajuste.models.files.tensors import Tensors, stored_dtype
from ajuste.models.folder import sha256_of
from tasks.merge.proof import proved, said

BUILT_BY = ("labels", "task", "pooling")  # of the card: what a classifier is built from, beside its base


class ClassifyConfig(Config):
    """Section `merge.classify`."""

    dtype: Literal["float32", "bfloat16"] | None = Field(
        default=None, description="Of the merged weights, rounded once from float64; null: that of the base."
    )
    max_logit_difference: float = Field(gt=0, description="Above it the merge is refused.")
    min_equal_predictions: float = Field(gt=0, le=1, description="Share of the rows; below it the merge is refused.")
    batch_rows: int = Field(ge=1, description="Rows of a forward pass of the proof.")


def merge(config: ClassifyConfig, compute: Compute, adapter: Path, base: Path, encoded: Path, out: Path) -> dict:
    """Merge `adapter` into `base` at `out` and return the proof. `encoded` holds test.parquet, the rows of the proof.

    Raises DataError when the proof is refused (nothing stays at `out`), UsageError when an input is missing.
    """
    for needed in (adapter / "adapter_model.safetensors", base / "model.safetensors", encoded / "test.parquet"):
        if not needed.is_file():
            raise UsageError(f"{needed} is missing: run the stage that makes it first (`ajuste run` does)")
    seed_everything(compute.seed, compute.threads)
    rows = pyarrow.parquet.read_table(encoded / "test.parquet", columns=["input_ids"])["input_ids"].to_pylist()
    if not rows:
        raise DataError(f"{encoded / 'test.parquet'} has no rows: a merge cannot be proved without any")

    try:
        model, tokenizer, card = classifier.load_adapter(base, adapter)
        dtype = getattr(torch, config.dtype) if config.dtype else stored_dtype(base / "model.safetensors")
        merged = lora.merge(model, dtype)
    except ValueError as error:
        raise UsageError(f"cannot merge: {error}") from None
    classifier.save(merged, tokenizer, out, card)
    shutil.copyfile(adapter / "history.jsonl", out / "history.jsonl")
    return proved(out, lambda: prove(config, compute, adapter, base, rows, out))


def prove(
    config: ClassifyConfig, compute: Compute, adapter: Path, base: Path, rows: list[list[int]], merged: Path
) -> dict:
    """Compare what is on disk: base + adapter with the merged folder. Raises ValueError when they are not the same."""
    adapted, _, card = classifier.load_adapter(base, adapter)
    whole, _, _ = classifier.load(merged)
    found = compare(adapted, whole, card["task"], rows, config.batch_rows, compute.torch_device())
    lora.refuse_unless_equal(found, config.max_logit_difference, config.min_equal_predictions)
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    W0, transposed = experts.base_weights(
        base / "model.safetensors", settings, lambda: classifier.build(base, *(card[x] for x in BUILT_BY))
    )
    by_hand = lora.merge_by_hand(W0, Tensors(adapter / "adapter_model.safetensors"), settings, transposed)
    return {
        "max_logit_difference": found.max_logit_difference,
        "tolerance": config.max_logit_difference,
        "equal_predictions": found.equal_predictions,
        "rows": found.rows,
        "dtype": str(stored_dtype(merged / "model.safetensors")).removeprefix("torch."),
        "max_weight_difference": lora.largest_difference(by_hand, whole.cpu().state_dict()),
        "adapter_sha256": sha256_of(adapter / "adapter_model.safetensors"),
        "base_sha256": sha256_of(base / "model.safetensors"),
        "merged_sha256": sha256_of(merged / "model.safetensors"),
    }


@torch.inference_mode()
def compare(
    left: nn.Module, right: nn.Module, task: str, rows: list[list[int]], batch_rows: int, device: str
) -> lora.Comparison:
    """The two models on the same rows of token ids, in the same length-sorted batches."""
    left, right = left.to(device), right.to(device)
    parts = []
    for batch in batching.sorted_batches(rows, batch_rows):
        input_ids, mask = batching.pad([rows[i] for i in batch], left.config.pad_token_id)
        input_ids, mask = input_ids.to(device), mask.to(device)
        parts.append(lora.compare_logits(*(logits(model, task, input_ids, mask) for model in (left, right))))
    return lora.combine(parts)


def logits(model: nn.Module, task: str, input_ids: Tensor, mask: Tensor) -> Tensor:
    """What the model answers, the choices last: [B, C] for sequence, [B, T, C] for token, [B, 2, T] for span.

    Padding is no token that anything is predicted for: there the logits of both models are set to the same number.
    """
    answer = model(input_ids=input_ids, attention_mask=mask)
    if task == "sequence":
        return answer.logits.float()
    padding = mask == 0
    if task == "token":
        return answer.logits.float().masked_fill(padding.unsqueeze(-1), 0.0)
    edges = torch.stack([answer.start_logits, answer.end_logits], dim=1).float()
    return edges.masked_fill(padding.unsqueeze(1), torch.finfo(torch.float32).min)


def main() -> None:
    with start("merge_classify", ClassifyConfig) as stage:
        artifacts = Path("artifacts")
        proof = merge(
            stage.config, stage.compute, artifacts / "adapters/classify_lora", artifacts / "base/encoder",
            artifacts / "encoded/reviews", artifacts / "merged/classify_lora",
        )  # fmt: skip
        print(said(proof))


if __name__ == "__main__":
    main()
