"""Stage `merge_instruct`: one decoder out of base and adapter, proved on the saved bytes to answer as the two do.

    LoRA, rsLoRA    W = W0 + (alpha/r) B A, alpha/sqrt(r)          summed in float64, rounded once to `dtype`
    DoRA            W = m (W0 + (alpha/r) B A) / ||...||           by row
    QLoRA           W = dequantised(W0) + (alpha/r) B A            the base that it was trained on, not the original
    prefix, prompt, bottleneck    no W holds them: the adapter's files are copied, and are what is served
    full, none      nothing to merge: the model is copied

One model is in memory at a time, in the dtype that its file has: base and adapter while they are merged, matrix by
matrix; then for the proof each of the two, whose logits wait on the disk for those of the other.

The proof, proof.json, is computed after saving, from disk, in float32. The trained model (base with its adapter,
quantised where it was trained so) and the merged folder get the same held-out rows: the largest |logit difference| over
all the responses' tokens; and the same prompts: the share of equal greedy tokens. `max_weight_difference` compares the
saved matrices with a second computation of the formula, in float64 and without PEFT (ajuste/learning/lora.py). A
quantised one says two more differences to the trained model: of the adapter on the original base, and of the merged
weights quantised again.

Reads   artifacts/adapters/instruct, artifacts/base/decoder, artifacts/encoded/instructions
Writes  artifacts/merged/instruct
Run it: python -m tasks.merge.instruct
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import pyarrow.parquet
import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ajuste.core import room
from ajuste.core.errors import DataError, UsageError
from ajuste.core.params import Compute, Config
from ajuste.learning import lora
from ajuste.learning.seeds import seed_everything
from ajuste.learning.text import chat
from ajuste.learning.text.generate import generate
from ajuste.models import decoder, experts, quantize
from ajuste.models.files import stored
from ajuste.models.files.tensors import Tensors, size_in, stored_dtype
from ajuste.models.folder import load_tokenizer, read_card, sha256_of
from tasks.merge.proof import proved, written

Row = tuple[list[int], int]  # token ids, and how many of them are the prompt
CHUNK = 256  # positions whose logits are compared at once: they are wide, and raised to float64
ADAPTER = "adapter_model.safetensors"


class DecoderConfig(Config):
    """Section `merge.instruct`."""

    dtype: Literal["float32", "bfloat16"] | None = Field(
        default=None, description="Of the merged weights, rounded once from float64; null: that of the base."
    )
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
    dtype = getattr(torch, config.dtype) if config.dtype else stored_dtype(base / decoder.WEIGHTS)
    room.ask({out: size_in(base / decoder.WEIGHTS, dtype)}, f"the merge into {out}")
    try:
        decoder.check_base(adapter, card, base)
        merged = lora.merge(adapted(adapter, base, card["quantisation"]), dtype)
    except ValueError as error:
        raise UsageError(f"cannot merge: {error}") from None
    decoder.save_whole(merged, load_tokenizer(adapter), out, card)
    del merged
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
    """The adapter on its base as it is stored, whose matrices are plain ones that it can be merged into.

    A quantised base is dequantised first: those are the numbers beside which A and B were trained.
    """
    if quantisation is None:
        model, _ = decoder.load_base(base, stored_dtype(base / decoder.WEIGHTS))
    else:
        model = quantize.dequantised_base(base, quantisation, torch.float32)
    return decoder.put_on(model, adapter)


def prove(
    config: DecoderConfig, compute: Compute, adapter: Path, base: Path, rows: list[Row],
    prompts: list[list[int]], merged: Path,
) -> dict:
    """Compare what is on disk: base and adapter as trained, with the merged folder. Raises ValueError if unequal."""
    device, card = compute.torch_device(), read_card(adapter)
    quantisation = card["quantisation"]
    with tempfile.TemporaryFile(dir=merged.parent) as kept:
        trained, tokenizer, _ = _proved(adapter, device, base)
        keep(kept, trained, rows)
        answers = [_answers(trained, tokenizer, prompts, config.new_tokens)]
        W0 = quantize.dequantised_weights(trained) if quantisation else None
        del trained
        whole, _, _ = _proved(merged, device)
        found = compare(kept, whole, rows)
        lora.refuse_unless_equal(found._replace(rows=len(rows)), config.max_logit_difference, 0.0)
        answers.append(_answers(whole, tokenizer, prompts, config.new_tokens))
        del whole
        equal, tokens = equal_tokens(*answers)
        if equal < config.min_equal_tokens:
            raise lora.ProofRefused(
                f"the merged model is not the adapter: {equal:.2%} of {tokens} greedy tokens are equal, at least "
                f"{config.min_equal_tokens:.2%} wanted (largest logit difference {found.max_logit_difference:.3g})"
            )
        others = _quantised(adapter, base, merged, quantisation, kept, rows, device) if quantisation else {}
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
        "dtype": str(stored_dtype(merged / decoder.WEIGHTS)).removeprefix("torch."),
        **_weights(adapter, base, W0, merged),
        **others,
        "adapter_sha256": sha256_of(adapter / ADAPTER),
        "base_sha256": sha256_of(base / decoder.WEIGHTS),
        "merged_sha256": sha256_of(merged / decoder.WEIGHTS),
    }


def _proved(folder: Path, device: str, base: Path | None = None) -> tuple[nn.Module, PreTrainedTokenizerBase, dict]:
    """A model that computes in float32, and is kept as it is stored where it is not quantised."""
    card = read_card(folder)
    whole = (base or folder) / decoder.WEIGHTS
    dtype = torch.float32 if base and card["quantisation"] else stored_dtype(whole)
    model, tokenizer, card = decoder.load(folder, base, dtype)
    return stored.float32(model).to(device).eval(), tokenizer, card


def keep(file: BinaryIO, model: nn.Module, rows: list[Row]) -> None:
    """Write the float32 logits of `responses` into a file, where they wait for another model's."""
    for row, prompt in rows:
        file.write(responses(model, row, prompt).cpu().numpy().tobytes())
    file.flush()


@torch.inference_mode()
def responses(model: nn.Module, row: list[int], prompt: int) -> Tensor:
    """Logits [T, V] where the model predicts the row's response. Inside a prompt no token is ever chosen."""
    ids = torch.tensor([row], device=next(model.parameters()).device)
    kept = len(row) - prompt + 1  # from the prompt's last token on
    return model(input_ids=ids, use_cache=False, logits_to_keep=kept).logits[0, :-1].float()


def compare(file: BinaryIO, model: nn.Module, rows: list[Row]) -> lora.Comparison:
    """The model whose logits `keep` wrote and another one, on the same rows, one row a pass: no padding.

    `rows` of the result counts tokens.
    """
    parts = []
    file.seek(0)
    for row, prompt in rows:
        right = responses(model, row, prompt)
        left = torch.from_numpy(np.frombuffer(bytearray(file.read(right.numel() * 4)), np.float32)).view(right.shape)
        for start in range(0, len(right), CHUNK):
            chunk = slice(start, start + CHUNK)
            parts.append(lora.compare_logits(left[chunk].to(right.device), right[chunk]))
    return lora.combine(parts)


def equal_tokens(left: list[list[int]], right: list[list[int]]) -> tuple[float, int]:
    """(share of positions with the same token, positions) of two lists of answers; what only one has is unequal."""
    same = sum(a == b for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=False))
    positions = sum(max(len(x), len(y)) for x, y in zip(left, right, strict=True))
    return same / positions, positions


def _answers(model: nn.Module, tokenizer: object, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    stop = chat.end_of_turn(tokenizer)
    return generate(model, prompts, new_tokens, stop, tokenizer.pad_token_id or stop[0], len(prompts))


def _weights(adapter: Path, base: Path, W0: Mapping[str, Tensor] | None, merged: Path) -> dict:
    """The formula by hand from the saved tensors, against the saved matrices. W0: of a quantised base, what it
    computes with."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    found: Mapping[str, Tensor] = Tensors(merged / decoder.WEIGHTS)
    transposed: frozenset[str] = frozenset()
    if W0 is None:
        W0, transposed = experts.base_weights(base / decoder.WEIGHTS, config, lambda: decoder.load_base(base)[0])
    if config.get("target_parameters"):  # on disk experts have other names
        found = decoder.load(merged)[0].state_dict()
    by_hand = lora.merge_by_hand(W0, Tensors(adapter / ADAPTER), config, transposed)
    return {"max_weight_difference": lora.largest_difference(by_hand, found)}


def _quantised(
    adapter: Path, base: Path, merged: Path, quantisation: str, kept: BinaryIO, rows: list[Row], device: str
) -> dict:
    """The three differences to the trained model: `merged` (the proof's own), and the two that people often take."""
    on_original = compare(kept, lora.merge(adapted(adapter, base, None)).to(device), rows)
    again = compare(kept, quantize.load(merged, quantisation, torch.float32), rows)
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
