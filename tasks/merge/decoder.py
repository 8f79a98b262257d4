"""Stage `merge_instruct`: one decoder out of base and adapter, proved on the saved bytes to answer as the two do.

    LoRA, rsLoRA    W = W0 + (alpha/r) B A, alpha/sqrt(r)          summed in float64, rounded once to `dtype`
    DoRA            W = m (W0 + (alpha/r) B A) / ||...||           by row
    QLoRA           W = dequantised(W0) + (alpha/r) B A            the base that it was trained on, not the original
    prefix, prompt, bottleneck    no W holds them: the adapter's files are copied, and are what is served
    full, none      nothing to merge: the model is copied

The proof, proof.json, is computed after saving, from disk. The trained model (base with its adapter, quantised where it
was trained so) and the merged folder get the same held-out rows: the largest |logit difference| over all the responses'
tokens; and the same prompts: the share of equal greedy tokens. `max_weight_difference` compares the saved matrices with
a second computation of the formula, in float64 and without PEFT (ajuste/learning/lora.py). A quantised one says two
more differences to the trained model: of the adapter on the original base, and of the merged weights quantised again.

Reads   artifacts/adapters/instruct, artifacts/base/decoder, artifacts/encoded/instructions
Writes  artifacts/merged/instruct
Run it: python -m tasks.merge.instruct
"""

import json
import shutil
from pathlib import Path
from typing import Literal

import pyarrow.parquet
import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import nn

from ajuste.core.errors import DataError, UsageError
from ajuste.core.params import Compute, Config
from ajuste.learning import lora
from ajuste.learning.seeds import seed_everything
from ajuste.learning.text import chat
from ajuste.learning.text.generate import generate
from ajuste.models import decoder, experts, quantize
from ajuste.models.folder import load_tokenizer, sha256_of
from tasks.merge.proof import proved, written

Row = tuple[list[int], int]  # token ids, and how many of them are the prompt
CHUNK = 256  # positions whose logits are compared at once: they are wide, and raised to float64
ADAPTER = "adapter_model.safetensors"


class DecoderConfig(Config):
    """Section `merge.instruct`."""

    dtype: Literal["float32", "bfloat16"] = Field(description="Of the merged weights, rounded once from float64.")
    max_logit_difference: float = Field(gt=0, description="Above it the merge is refused.")
    min_equal_tokens: float = Field(gt=0, le=1, description="Share of the greedy tokens; below it it is refused.")
    rows: int = Field(ge=1, description="Held-out rows whose logits are compared, the lowest row ids.")
    prompts: int = Field(ge=1, description="As many of those rows are answered.")
    new_tokens: int = Field(ge=1, description="Of each answer.")


def merge_decoder(
    config: DecoderConfig, compute: Compute, adapter: Path, base: Path, encoded: Path, out: Path
) -> dict:
    """Merge `adapter` into `base` at `out` and return the proof. `encoded` holds test.parquet, the rows of the proof.

    base: the folder that the adapter's card names, the pretrained base or the whole model of an earlier training.

    Raises DataError when the proof is refused (nothing stays at `out`), UsageError when an input is missing or does
    not belong to the others.
    """
    for needed in (adapter / "ajuste.json", base / decoder.WEIGHTS, encoded / "test.parquet"):
        if not needed.is_file():
            raise UsageError(f"{needed} is missing: run the stage that makes it first (`ajuste run` does)")
    card = json.loads((adapter / "ajuste.json").read_text(encoding="utf-8"))
    if not decoder.is_adapter(adapter):
        what = "no weight was trained, which" if card["method"] == "none" else "full fine-tuning"
        return _copy(adapter, out, f"{what} has nothing to merge")
    if not card["mergeable"]:
        return _copy(adapter, out, f"{card['method']} is no change of a matrix W0: it is served as adapter on its base")
    seed_everything(compute.seed, compute.threads)
    rows, prompts = proof_rows(encoded, config)
    try:
        decoder.check_base(adapter, card, base)
        merged = lora.merge(adapted(adapter, base, card["quantisation"]), getattr(torch, config.dtype))
    except ValueError as error:
        raise UsageError(f"cannot merge: {error}") from None
    decoder.save_whole(merged, load_tokenizer(adapter), out, card)
    shutil.copyfile(adapter / "history.jsonl", out / "history.jsonl")
    return proved(out, lambda: prove(config, compute, adapter, base, rows, prompts, out))


def proof_rows(encoded: Path, config: DecoderConfig) -> tuple[list[Row], list[list[int]]]:
    """(rows, token ids of the prompts) of the test split, by row id. Raises DataError without any."""
    columns = ["row_id", "input_ids", "prompt_tokens"]
    table = pyarrow.parquet.read_table(encoded / "test.parquet", columns=columns)
    found = table.sort_by("row_id").slice(0, max(config.rows, config.prompts)).to_pylist()
    answered = [row for row in found if 0 < row["prompt_tokens"] < len(row["input_ids"])]
    rows = [(row["input_ids"], row["prompt_tokens"]) for row in answered][: config.rows]
    prompts = [row["input_ids"][: row["prompt_tokens"]] for row in found if row["prompt_tokens"]][: config.prompts]
    if not rows or not prompts:
        raise DataError(f"{encoded / 'test.parquet'} has no rows with a prompt: a merge cannot be proved without any")
    return rows, prompts


def adapted(adapter: Path, base: Path, quantisation: str | None) -> nn.Module:
    """The adapter on its base in float32, whose matrices are plain ones that it can be merged into.

    A quantised base is dequantised first: those are the numbers beside which A and B were trained.
    """
    if quantisation is None:
        model, _ = decoder.load_base(base)
    else:
        model = quantize.dequantised_base(base, quantisation, torch.float32)
    return decoder.put_on(model, adapter)


def prove(
    config: DecoderConfig, compute: Compute, adapter: Path, base: Path, rows: list[Row],
    prompts: list[list[int]], merged: Path,
) -> dict:
    """Compare what is on disk: base and adapter as trained, with the merged folder. Raises ValueError if unequal."""
    device = compute.torch_device()
    trained, tokenizer, card = decoder.load(adapter, base, torch.float32)
    whole, _, _ = decoder.load(merged, dtype=torch.float32)
    trained, whole = trained.to(device).eval(), whole.to(device).eval()
    found = compare(trained, whole, rows)
    lora.refuse_unless_equal(found._replace(rows=len(rows)), config.max_logit_difference, 0.0)
    answers = [_answers(model, tokenizer, prompts, config.new_tokens) for model in (trained, whole)]
    equal, tokens = equal_tokens(*answers)
    if equal < config.min_equal_tokens:
        raise lora.ProofRefused(
            f"the merged model is not the adapter: {equal:.2%} of {tokens} greedy tokens are equal, at least "
            f"{config.min_equal_tokens:.2%} wanted (largest logit difference {found.max_logit_difference:.3g})"
        )
    return {
        "merged": True,
        "method": card["method"],
        "max_logit_difference": found.max_logit_difference,
        "tolerance": config.max_logit_difference,
        "equal_predictions": found.equal_predictions,
        "rows": len(rows),
        "tokens": found.rows,
        "equal_greedy_tokens": equal,
        "greedy_tokens": tokens,
        "min_equal_greedy_tokens": config.min_equal_tokens,
        "prompts": len(prompts),
        "dtype": config.dtype,
        **_weights(adapter, base, trained if card["quantisation"] else None, whole),
        **(_quantised(adapter, base, merged, card["quantisation"], trained, rows) if card["quantisation"] else {}),
        "adapter_sha256": sha256_of(adapter / ADAPTER),
        "base_sha256": sha256_of(base / decoder.WEIGHTS),
        "merged_sha256": sha256_of(merged / decoder.WEIGHTS),
    }


@torch.inference_mode()
def compare(left: nn.Module, right: nn.Module, rows: list[Row]) -> lora.Comparison:
    """The two models where they predict the rows' responses, one row a pass: no padding.

    `rows` of the result counts tokens. Inside a prompt no token is ever chosen, so the logits there are not compared.
    """
    parts = []
    for row, prompt in rows:
        answers = []
        for model in (left, right):
            ids = torch.tensor([row], device=next(model.parameters()).device)
            kept = len(row) - prompt + 1  # from the prompt's last token on
            answers.append(model(input_ids=ids, use_cache=False, logits_to_keep=kept).logits[0, :-1])
        for start in range(0, len(row) - prompt, CHUNK):
            parts.append(lora.compare_logits(*(logits[start : start + CHUNK] for logits in answers)))
    return lora.combine(parts)


def equal_tokens(left: list[list[int]], right: list[list[int]]) -> tuple[float, int]:
    """(share of positions with the same token, positions) of two lists of answers; what only one has is unequal."""
    same = sum(a == b for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=False))
    positions = sum(max(len(x), len(y)) for x, y in zip(left, right, strict=True))
    return same / positions, positions


def _answers(model: nn.Module, tokenizer: object, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    stop = chat.end_of_turn(tokenizer)
    return generate(model, prompts, new_tokens, stop, tokenizer.pad_token_id or stop[0], len(prompts))


def _weights(adapter: Path, base: Path, quantised: nn.Module | None, whole: nn.Module) -> dict:
    """The formula by hand from the saved tensors, against the saved matrices; W0 is what `quantised` computes with."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    if quantised is not None:
        W0, transposed = quantize.dequantised_weights(quantised), ()
    else:
        W0, transposed = experts.base_weights(base / decoder.WEIGHTS, config, lambda: decoder.load_base(base)[0])
    by_hand = lora.merge_by_hand(W0, load_file(adapter / ADAPTER), config, transposed)
    return {"max_weight_difference": lora.largest_difference(by_hand, whole.cpu().state_dict())}


def _quantised(
    adapter: Path, base: Path, merged: Path, quantisation: str, trained: nn.Module, rows: list[Row]
) -> dict:
    """The three differences to the trained model: `merged` (the proof's own), and the two that people often take."""
    original = lora.merge(adapted(adapter, base, None)).to(next(trained.parameters()).device)
    on_original = compare(trained, original, rows)
    again = compare(trained, quantize.load(merged, quantisation, torch.float32), rows)
    return {
        "quantisation": quantisation,
        "max_logit_difference_on_original_base": on_original.max_logit_difference,
        "equal_predictions_on_original_base": on_original.equal_predictions,
        "max_logit_difference_requantised": again.max_logit_difference,
        "equal_predictions_requantised": again.equal_predictions,
    }


def _copy(adapter: Path, out: Path, why: str) -> dict:
    """The folder as it is, and a proof that says why nothing was merged."""
    shutil.copytree(adapter, out, dirs_exist_ok=True)
    return written(out, {"merged": False, "why": why})
