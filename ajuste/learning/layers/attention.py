"""Causal self-attention of each row of a ragged batch, forward and backward by hand: four matrix products a row.

    S = scale Q K^T    P = softmax(S + causal mask)    O = P V                       H heads of width d, G of K and V
    dV = P^T dO        dP = dO V^T        dS = P * (dP - sum(P * dP))        dQ = scale dS K        dK = scale dS^T Q

The n = H/G heads that share a head of K and V are laid under one another, [G, n L, d], so nothing is repeated. K and V
are filled up to a multiple of 32 tokens, which the causal mask hides: odd widths halve the speed of vector units. On a
CPU this is 4 to 14 times faster than the backward pass of torch's own SDPA for rows of up to a few hundred tokens; it
keeps P, n L^2 numbers a head, so `row_attention` hands longer rows, and all rows on a GPU, to torch's SDPA one by one.
In bfloat16 S is rounded before the softmax, as in transformers' eager attention; the softmax itself runs in float32.

Tested against SDPA in float64 and float32: tests/learning/test_attention.py.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

BY_HAND = 512  # tokens of the longest row that is done here
WIDTH = 32  # bfloat16 numbers in a vector register


def row_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: list[int],
    scale: float,
    dropout: float = 0.0,
    window: int | None = None,
) -> Tensor:
    """query [1, H, T, d], key and value [1, G, T, d] with T = sum(lengths) -> [1, T, H, d]. Each row sees only itself.

    window: no token looks further back than that many. Raises ValueError when the lengths do not fill T.
    """
    if query.shape[0] != 1 or sum(lengths) != query.shape[2] or key.shape[2] != query.shape[2]:
        raise ValueError(f"rows of {sum(lengths)} tokens do not fit a batch of {list(query.shape)}")
    longest = max(lengths)
    banded = window is not None and longest > window
    if query.device.type == "cpu" and longest <= BY_HAND and not dropout and not banded:
        return _ByHand.apply(query, key, value, lengths, scale)
    outs = []
    for q, k, v in zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True):
        mask = _band(q.shape[2], window, q.device) if banded else None
        outs.append(
            F.scaled_dot_product_attention(
                q, k, v, mask, dropout, is_causal=mask is None, scale=scale, enable_gqa=k.shape[1] != q.shape[1]
            )
        )
    return torch.cat(outs, dim=2).transpose(1, 2)


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """Causal, and no further back than `window` tokens: [T, T], True where a token is seen."""
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None]
    return (distance >= 0) & (distance < window)


class _ByHand(torch.autograd.Function):
    """Row after row; `_stacked` gives the views that the products work on."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)  # one dtype under autocast, which ends here
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, lengths: list[int], scale: float) -> Tensor:
        _, H, T, d = query.shape
        widest = _wide(max(lengths))
        future = torch.full((widest, widest), -torch.inf, dtype=query.dtype).triu_(1)
        out = query.new_empty(1, T, H, d)
        kept = []
        for q, k, v, o in zip(*_rows(lengths, query[0], key[0], value[0], out[0].transpose(0, 1)), strict=True):
            L, G = q.shape[1], k.shape[0]
            S = torch.bmm(_stacked(q, G, scale), _filled(k).transpose(1, 2))
            S.view(G, H // G, L, -1).add_(future[:L, : S.shape[-1]])
            P = torch.softmax(S, -1)
            o.view(G, H // G, L, d).copy_(torch.bmm(P, _filled(v)).view(G, H // G, L, d))
            kept.append(P)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.lengths, ctx.scale = lengths, scale
        return out

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        # laid out as the projections want them, [1, T, H, d], and seen as [1, H, T, d]
        dquery, dkey, dvalue = (
            torch.empty_like(tensor.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
            for tensor in (query, key, value)
        )
        gradients = (dquery[0], dkey[0], dvalue[0])
        rows = _rows(ctx.lengths, query[0], key[0], value[0], upstream[0].transpose(0, 1), *gradients)
        for P, q, k, v, do, dq, dk, dv in zip(kept, *rows, strict=True):
            (H, L, d), G = q.shape, k.shape[0]
            do = _stacked(do, G, 1.0)
            dv.copy_(torch.bmm(P.transpose(1, 2), do)[:, :L])
            dS = torch._softmax_backward_data(torch.bmm(do, _filled(v).transpose(1, 2)), P, -1, P.dtype)
            torch.mul(torch.bmm(dS, _filled(k)).view(G, H // G, L, d), ctx.scale, out=dq.view(G, H // G, L, d))
            dk.copy_(torch.bmm(dS.transpose(1, 2), _stacked(q, G, ctx.scale))[:, :L])
        return dquery, dkey, dvalue, None, None


def _rows(lengths: list[int], *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Each [heads, T, d] tensor as its rows [heads, L, d], views of it."""
    return [tensor.split(lengths, dim=1) for tensor in tensors]


def _wide(length: int) -> int:
    """The next multiple of WIDTH."""
    return -(-length // WIDTH) * WIDTH


def _filled(x: Tensor) -> Tensor:
    """[G, L, d] -> [G, the next multiple of WIDTH, d], with zeros below."""
    return F.pad(x, (0, 0, 0, _wide(x.shape[1]) - x.shape[1])).contiguous()


def _stacked(x: Tensor, G: int, scale: float) -> Tensor:
    """[H, L, d] -> [G, H/G * L, d], times scale: the heads of one head of K and V under one another."""
    H, L, d = x.shape
    stacked = x.new_empty(G, H // G, L, d)
    torch.mul(x.view(G, H // G, L, d), scale, out=stacked)
    return stacked.view(G, H // G * L, d)
