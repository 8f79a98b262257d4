"""Attention of one new token a row over keys that rows of unequal length have: each key head is read once.

    q [B, H, 1, d]      K, V [B, G, L, d]      H = G r: query heads g r ... g r + r - 1 share key head g
    row b sees the last lengths[b] + 1 columns, of them the last `window` if there is one

    S = scale q K^T [B, G, r, L]      o = softmax(S where seen) V

transformers' SDPA on a CPU copies K and V r times first (`repeat_kv`), all of them for every token: with 32 rows of
100 columns in 30 layers half a gigabyte. Here K and V stay where they are. The lengths travel in the place of the mask,
as in ragged.py; every other batch goes through the attention that was active.

    if attach(model):  model(ids, attention_mask=lengths[None, None, None], past_key_values=cache, ...)
"""

import torch
from torch import Tensor, nn

from ajuste.learning.layers import active

NAME = "one_token"      # of the attention function


def attach(model: nn.Module) -> bool:
    """Let a causal language model of transformers, without PEFT around it, take such steps; whether it can."""
    try:
        active.attach(model, NAME, _attention)
    except ValueError:
        return False
    return True


def detach(model: nn.Module) -> None:
    """The attention that was active, alone again."""
    active.detach(model)


def attached(model: nn.Module) -> bool:
    """True after `attach`."""
    return active.attached(model, NAME)


def attention(q: Tensor, K: Tensor, V: Tensor, lengths: Tensor, scale: float, window: int | None = None) -> Tensor:
    """o [B, 1, H, d] of q [B, H, 1, d] over K, V [B, G, L, d]; lengths [B] int64: columns seen besides the newest."""
    (B, H, _, d), (_, G, L, _) = q.shape, K.shape
    seen = lengths if window is None else lengths.clamp(max=window - 1)
    hidden = torch.arange(L, device=q.device) < (L - 1 - seen.to(q.device))[:, None]
    S = torch.matmul(q.reshape(B, G, H // G, d) * scale, K.transpose(-1, -2))
    P = torch.softmax(S.float().masked_fill_(hidden[:, None, None], float("-inf")), -1).to(V.dtype)
    return torch.matmul(P, V).reshape(B, 1, H, d)


def _attention(plain: active.Plain, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor) -> Tensor:
    return attention(query, key, value, lengths.flatten(), plain.scale, plain.window)
