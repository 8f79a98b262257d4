"""log pi(y | x) of a decoder: how likely it makes whole responses, with gradients, for what learns from preferences.

    log pi(y | x) = sum_t log pi(y_t | x, y_<t)                        the end of turn is the last y_t

What all rows of a batch begin with goes through the model once (ajuste/learning/layers/shared_prefix.py), so where
everybody answers one prompt it is read once, and the output layer runs on the responses alone. Architectures for which
that is not exact get padded rows (ajuste/models/probe/). Of the N x V probabilities one copy is kept, in the logits'
own dtype:

    d log pi(y_t) / dz = onehot(y_t) - p                                p = softmax(z)

    model = build(Path("artifacts/merged/instruct"), Settings(), torch.bfloat16)          # LoRA on a frozen base
    batch = collate(model, [Row(prompt_ids + response_ids, len(prompt_ids)), ...])
    log_probs(model, batch)                                                           # [B] float32
    score(model, rows)                                                                # [M], many rows, no gradients

The reference is the same model with adapters off, or the base itself (`load_reference`): the same bits.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ajuste.learning.layers import fused, ragged, shared_prefix
from ajuste.learning.layers.two_ways import SHARED
from ajuste.models import decoder, layers, methods
from ajuste.models.probe.prefixes import likelihoods

TOKENS = 2048  # of one batch that is scored
CHUNK = 64  # rows of logits turned into float32 at once


class Settings(NamedTuple):
    """LoRA beside the frozen base: the update is (alpha/r) B A."""

    r: int = 8
    alpha: float = 16
    lora_dropout: float = 0.0
    targets: tuple[str, ...] = ("all-linear",)  # last names of the adapted layers


class Row(NamedTuple):
    """Token ids of prompt and response, and how many of them are the prompt's (at least 1)."""

    ids: Sequence[int]
    prompt: int


def rows(whole: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[Row]:
    """Rows of prompt and response, of which the last `lengths` tokens are the response."""
    return [Row(ids, len(ids) - length) for ids, length in zip(whole, lengths, strict=True)]


# --- build ------------------------------------------------------------------------------------------------------------


def build(base: Path, settings: Settings, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The policy: the decoder at `base` with LoRA, in training mode; A is drawn: seed torch first.

    dtype: of the frozen weights and the products; A and B are float32. Raises ValueError for a base that is missing or
    no whole model, or a target layer that it does not have.
    """
    model = layers.without_noise(_whole(base, dtype))
    adapted = methods.attach(model, methods.Settings("lora", **settings._asdict()))
    fused.fuse(adapted)
    return _attach(adapted)


def load_reference(base: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The reference: the decoder at `base` as it is, in eval mode. Raises ValueError as `build` does."""
    return _attach(_whole(base, dtype))


def _whole(base: Path, dtype: torch.dtype) -> nn.Module:
    decoder.identity_of(base)  # refuses a folder that is no whole decoder
    return decoder.load_base(base, dtype)[0]


def _attach(model: nn.Module) -> nn.Module:
    """The model, which takes rows behind a shared prefix if that is exact. Raises ValueError if padded rows are not."""
    likelihoods(model, lambda m, found: log_probs(m, collate(m, [Row(ids, SHARED) for ids in found])))
    return model


# --- batches ----------------------------------------------------------------------------------------------------------


def collate(model: nn.Module, rows: Sequence[Row]) -> dict[str, Tensor]:
    """The batch that `log_probs` takes: input_ids and position_ids, lengths or attention_mask, and of the N response
    tokens `columns` (where the model's logits are wanted), `places` (among those logits), `targets` and `owners`;
    `tokens` [B] counts them.

    Raises ValueError for no rows, a row without a prompt, or one without a response.
    """
    if not rows or any(not 0 < row.prompt < len(row.ids) for row in rows):
        raise ValueError("a batch needs rows, and every row a prompt and a response of at least one token each")
    counts = torch.tensor([len(row.ids) - row.prompt for row in rows])
    owners = torch.repeat_interleave(torch.arange(len(rows)), counts)
    positions = torch.cat([torch.arange(row.prompt - 1, len(row.ids) - 1) for row in rows])  # each predicts the next
    ids = [torch.as_tensor(row.ids, dtype=torch.int64) for row in rows]
    if shared_prefix.takes_shared(model):
        shared = shared_prefix.collate([row.ids for row in rows])
        batch, at = shared._asdict(), shared.places(owners, positions)
        columns, places = at.unique(return_inverse=True)
    else:
        batch = ragged.padded([(row.ids, row.ids) for row in rows], pad_id=0)
        del batch["labels"]
        columns, at = positions.unique(return_inverse=True)
        places = owners * len(columns) + at
    targets = torch.cat([x[row.prompt :] for x, row in zip(ids, rows, strict=True)])
    return {**batch, "columns": columns, "places": places, "targets": targets, "owners": owners, "tokens": counts}


def log_probs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """log pi(y | x) of every row of a batch from `collate`: [B] float32, with gradients."""
    mask = batch.get("attention_mask")
    if "lengths" in batch:
        mask = batch["lengths"].cpu().view(1, 1, 1, -1)  # the attention reads them as Python numbers, once a layer
    device = next(model.parameters()).device
    logits = model(
        input_ids=batch["input_ids"].to(device),
        attention_mask=mask if mask is None or mask.ndim == 4 else mask.to(device),
        position_ids=batch["position_ids"].to(device),
        use_cache=False,
        logits_to_keep=batch["columns"].to(device),
    ).logits.flatten(0, 1)
    places, targets, owners = (batch[name].to(device) for name in ("places", "targets", "owners"))
    found = _LogProbs.apply(logits, places, targets)
    return found.new_zeros(len(batch["tokens"])).index_add(0, owners, found)


@torch.no_grad()
def score(model: nn.Module, rows: Sequence[Row], tokens_per_batch: int = TOKENS) -> Tensor:
    """log pi(y | x) of rows: [M] float32 on the CPU, in the order of `rows`.

    Runs in eval mode, in batches of rows of similar length, of at most `tokens_per_batch` tokens (or one row).
    """
    result = torch.zeros(len(rows))
    training = model.training
    model.eval()
    try:
        for chosen in ragged.batches([len(row.ids) for row in rows], tokens_per_batch):
            result[chosen] = log_probs(model, collate(model, [rows[i] for i in chosen])).cpu()
    finally:
        model.train(training)
    return result


class _LogProbs(torch.autograd.Function):
    """logits [U, V], places [N] among them, targets [N] -> log softmax(logits[places])[targets], float32 [N].

    Several rows may be predicted from one place, the last token of a prompt that they share.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, places: Tensor, targets: Tensor) -> Tensor:
        kind = torch.promote_types(logits.dtype, torch.float32)
        keep = ctx.needs_input_grad[0]
        p = torch.empty_like(logits) if keep else None
        normaliser = logits.new_empty(len(logits), dtype=kind)
        for start in range(0, len(logits), CHUNK):
            some = slice(start, start + CHUNK)
            z = logits[some].to(kind)
            normaliser[some] = z.logsumexp(1)
            if keep:
                p[some] = (z - normaliser[some, None]).exp_()
        ctx.save_for_backward(p, places, targets)
        return logits[places, targets].to(kind) - normaliser[places]

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor) -> tuple[Tensor, None, None]:
        p, places, targets = ctx.saved_tensors
        total = g.new_zeros(len(p)).index_add(0, places, g)
        dz = p.mul_(-total[:, None].to(p.dtype))
        dz.index_put_((places, targets), g.to(p.dtype), accumulate=True)
        return dz, None, None
