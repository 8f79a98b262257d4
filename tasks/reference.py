"""Stage `reference`: what the reference model says of all comparisons, once for every training that asks.

    log pi_ref(y | x) = sum_t log pi_ref(y_t | x, y_<t)          of each response of train, validation and test

The reference is the merged SFT model, which DPO starts from: bit for bit the policy with its adapter off. Its word on a
response does not change while the policy learns, so it is read from this stage's out, and another loss, rate or beta
computes nothing again. DVC keys it by the comparisons, the model and section `reference`.

Reads   artifacts/merged/instruct, artifacts/encoded/preferences
Writes  artifacts/reference: log_probs.parquet (split, row_id, log_probs) and reference.json, as
        ajuste/rows/encoded/reference.py says
Run it: `dvc repro reference`.
"""

import time
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from ajuste.core import allocator
from ajuste.core.errors import UsageError
from ajuste.core.params import Compute, Config
from ajuste.core.stage import start
from ajuste.learning.seeds import seed_everything
from ajuste.models import decoder, responses
from ajuste.rows.encoded.comparisons import Comparisons, read_comparisons
from ajuste.rows.encoded.labelled import read_encoding
from ajuste.rows.encoded.reference import write_reference

SPLITS = ("train", "validation", "test")


class ReferenceConfig(Config):
    """Section `reference`."""

    dtype: Literal["float32", "bfloat16"] = Field(description="Of the weights and the products, here and in dpo.")


def reference(config: ReferenceConfig, compute: Compute, encoded: Path, base: Path, out: Path) -> dict:
    """Score every response at `encoded` with the decoder at `base` and write `out`.

    Returns reference.json, with `tokens` and `pairs_per_second` added. Raises UsageError and DataError.
    """
    seed_everything(compute.seed, compute.threads)
    try:
        identity = decoder.identity_of(base)
        model = responses.load_reference(base, getattr(torch, config.dtype)).to(compute.torch_device())
    except ValueError as error:
        raise UsageError(f"reference: {error}") from None
    splits = {split: read_comparisons(encoded, split, model.config) for split in SPLITS}
    began = time.monotonic()
    found = {split: (some, _scored(model, some)) for split, some in splits.items()}
    seconds = time.monotonic() - began
    card = {
        "base": identity,
        "dtype": config.dtype,
        "set": read_encoding(encoded)["set"],
        "comparisons": {split: len(some) for split, some in splits.items()},
    }
    write_reference(out, found, card)
    tokens = sum(sum(some.tokens()) for some in splits.values())
    return {**card, "tokens": tokens, "per_second": sum(map(len, splits.values())) / seconds}


def _scored(model: torch.nn.Module, comparisons: Comparisons) -> list[list[float]]:
    """log pi_ref of each comparison's responses."""
    lengths = [length for one in comparisons for length in one.lengths]
    values = iter(responses.score(model, responses.rows(comparisons.rows(), lengths)).tolist())
    return [list(islice(values, len(one.rows))) for one in comparisons]


def main() -> None:
    with start("reference", ReferenceConfig) as stage:
        allocator.keep_memory()
        artifacts = Path("artifacts")
        done = reference(
            stage.config, stage.compute, artifacts / "encoded/preferences", artifacts / "merged/instruct",
            artifacts / "reference",
        )  # fmt: skip
        stage.count(tokens=done["tokens"])
        counted = ", ".join(f"{number:,} of {split}" for split, number in done["comparisons"].items())
        print(f"reference's log-probabilities of the comparisons: {counted}")


if __name__ == "__main__":
    main()
