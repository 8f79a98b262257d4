"""Stage `merge_reward`: one reward model out of base and adapter, proved on the saved bytes to score as the two do.

    W = W0 + (alpha/r) B A          for every adapted matrix; the head w is taken over, b stays in the card

The folder is an ordinary sequence classification model with one label, without a trace of PEFT: its logit is the reward
less b. The proof, proof.json, is computed after saving, from disk: base with adapter and merged folder score the same
held-out responses. `equal_predictions` is the share of pairs that both put in the same order, `max_weight_difference`
compares the saved matrices with a second computation of the formula, in float64 and without PEFT
(ajuste/learning/lora.py).

Reads   artifacts/adapters/reward, artifacts/merged/instruct, artifacts/encoded/preferences
Writes  artifacts/merged/reward
Run it: python -m tasks.merge.reward
"""

import json
import shutil
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from ajuste.core import room
from ajuste.core.errors import UsageError
from ajuste.core.params import Compute, Config
from ajuste.core.stage import start
from ajuste.learning import lora
from ajuste.learning.losses.bradley_terry import pairs
from ajuste.learning.seeds import seed_everything
from ajuste.models import experts, reward
from ajuste.models.files.tensors import Tensors, size_in, stored_dtype
from ajuste.models.folder import sha256_of
from ajuste.rows.encoded.comparisons import Comparisons, read_comparisons
from tasks.merge.proof import proved, said


class RewardConfig(Config):
    """Section `merge.reward`."""

    dtype: Literal["float32", "bfloat16"] | None = Field(
        default=None, description="Of the merged weights, rounded once from float64; null: that of the base."
    )
    max_logit_difference: float = Field(gt=0, description="Between two rewards; above it the merge is refused.")
    min_equal_predictions: float = Field(gt=0, le=1, description="Share of pairs in the same order; below: refused.")
    rows: int = Field(ge=1, description="Held-out comparisons that are scored, the lowest row ids.")


def merge_reward(config: RewardConfig, compute: Compute, adapter: Path, base: Path, encoded: Path, out: Path) -> dict:
    """Merge `adapter` into `base` at `out` and return the proof. `encoded` holds test.parquet, the rows of the proof.

    Raises DataError when the proof is refused (nothing stays at `out`), UsageError when an input is missing or does
    not belong to the others.
    """
    for needed in (adapter / reward.ADAPTER, base / reward.WHOLE, encoded / "test.parquet"):
        if not needed.is_file():
            raise UsageError(f"{needed} is missing: run the stage that makes it first (`ajuste run` does)")
    seed_everything(compute.seed, compute.threads)
    try:
        model, tokenizer, card = reward.load(adapter, base)
        held_out = read_comparisons(encoded, "test", model.config)
        dtype = getattr(torch, config.dtype) if config.dtype else stored_dtype(base / reward.WHOLE)
        room.ask({out: size_in(base / reward.WHOLE, dtype)}, f"the merge into {out}")
        merged = lora.merge(model, dtype)
    except ValueError as error:
        raise UsageError(f"cannot merge: {error}") from None
    reward.save(merged, tokenizer, out, card)
    del model, merged
    for name in ("history.jsonl", "evaluation.json"):
        shutil.copyfile(adapter / name, out / name)
    compared = Comparisons(held_out.found[: config.rows])
    return proved(out, lambda: prove(config, compute, adapter, base, compared, out))


def prove(
    config: RewardConfig, compute: Compute, adapter: Path, base: Path, comparisons: Comparisons, merged: Path
) -> dict:
    """Base and adapter beside the merged folder, from disk. Raises ValueError when they are not the same."""
    rows, scores = comparisons.rows(), []
    for arguments in ((adapter, base), (merged,)):
        model, _, card = reward.load(*arguments)
        scores.append(reward.score(model.to(compute.torch_device()), rows))
        del model  # before the next one is loaded
    better, worse, _ = pairs(comparisons.sizes())
    # a pair as two logits: which of them is the larger one is the order
    left, right = (torch.stack([found[better], found[worse]], dim=1) for found in scores)
    found = lora.compare_logits(left, right)._replace(rows=len(rows))
    lora.refuse_unless_equal(found, config.max_logit_difference, config.min_equal_predictions)
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    W0, transposed = experts.base_weights(base / reward.WHOLE, settings, lambda: reward.load_base(base))
    by_hand = lora.merge_by_hand(W0, Tensors(adapter / reward.ADAPTER), settings, transposed)
    return {
        "merged": True,
        "method": card["method"],
        "max_logit_difference": found.max_logit_difference,
        "tolerance": config.max_logit_difference,
        "equal_predictions": found.equal_predictions,
        "rows": found.rows,
        "pairs": len(better),
        "dtype": str(stored_dtype(merged / reward.WHOLE)).removeprefix("torch."),
        "max_weight_difference": lora.largest_difference(by_hand, Tensors(merged / reward.WHOLE)),
        "adapter_sha256": sha256_of(adapter / reward.ADAPTER),
        "base_sha256": sha256_of(base / reward.WHOLE),
        "merged_sha256": sha256_of(merged / reward.WHOLE),
    }


def main() -> None:
    with start("merge_reward", RewardConfig) as stage:
        artifacts = Path("artifacts")
        proof = merge_reward(
            stage.config, stage.compute, artifacts / "adapters/reward", artifacts / "merged/instruct",
            artifacts / "encoded/preferences", artifacts / "merged/reward",
        )  # fmt: skip
        print(said(proof))


if __name__ == "__main__":
    main()
