"""Rows of a batch that begin with the same tokens: what they share goes through the model once.

    rows        [p p p a a]  [p p p b b b b]  [p p p c]           p: the prompt's fixed part, P tokens
    input_ids    p p p   a a   b b b b   c                        [1, T]     T = P + the sum of what is left of each
    position     0 1 2   3 4   3 4 5 6   3                        [1, T]
    attention    each row sees the prefix and itself, causally; the prefix sees itself

Causal attention makes this exact: a token of the prefix sees nothing behind it, so its keys, values and hidden states
are the same in every row; in the backward pass its gradient is the sum over the rows. All the rest of a decoder works
on single tokens. For a prompt of 40 fixed tokens before rows of 30 it saves half of the arithmetic; without a common
prefix it is ajuste/learning/layers/ragged.py. P and the lengths travel in the place of the attention mask, as they do
there.

    S = scale Q K^T    P = softmax(S + causal mask)    O = P V             rows of like length in one product, filled up
    dV = P^T dO    dP = dO V^T    dS = P * (dP - sum(P * dP))    dQ = scale dS K    dK = scale dS^T Q

    model = attach(model)                      # once, before or after PEFT wraps it
    batch = collate(rows)                      # rows: token ids
    h = hidden(model, batch)                   # [T, d]; that of row i at position t stands at batch.places(i, t)

Rows beyond 512 tokens, sliding windows and GPUs go through torch's SDPA with a mask. Tested against plain padded rows,
losses and gradients: tests/invariants/test_shared_prefix.py.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ajuste.learning.layers import active
from ajuste.learning.layers.attention import BY_HAND, WIDTH
from ajuste.learning.layers.ragged import _base, trunk

NAME = "rows_behind_a_prefix"  # of the attention function


# --- batches ----------------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """input_ids and position_ids [1, T]; lengths [1 + B]: of the prefix (0 if there is none), then of what each row has
    beyond it (at least 1)."""

    input_ids: Tensor
    position_ids: Tensor
    lengths: Tensor

    def places(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Where token `positions` of row `rows` stands in T: two int64 tensors that broadcast -> one."""
        prefix = self.lengths[0]
        offsets = self.lengths.cumsum(0)[:-1].to(rows.device)
        return torch.where(positions < prefix, positions, offsets[rows] + positions - prefix)


def collate(rows: Sequence[Sequence[int]]) -> Batch:
    """One batch of rows of token ids. Raises ValueError for no rows or an empty one."""
    if not rows or not all(len(row) for row in rows):
        raise ValueError("a batch needs at least one row, and every row at least one token")
    P = _common(rows)
    parts = [rows[0][:P], *(row[P:] for row in rows)]
    return Batch(
        torch.cat([torch.as_tensor(part, dtype=torch.int64) for part in parts])[None],
        torch.cat([torch.arange(P), *(torch.arange(P, P + len(part)) for part in parts[1:])])[None],
        torch.tensor([len(part) for part in parts]),
    )


def _common(rows: Sequence[Sequence[int]]) -> int:
    """Tokens that all rows begin with; each keeps one of its own. A single row shares with nobody."""
    if len(rows) == 1:
        return 0
    first, last = min(map(list, rows)), max(map(list, rows))  # what these two share, all share
    longest = min(map(len, rows)) - 1
    return next((i for i in range(longest) if first[i] != last[i]), longest)


def attach(model: nn.Module) -> nn.Module:
    """Let a causal language model or classifier of transformers, wrapped by PEFT or not, take such batches; returns it.

    Every other batch goes through the attention that was active, as before (active.py). Nothing of this is saved with
    the model. Whether the architecture takes them exactly is the probe's to say (ajuste/models/probe/).
    Raises ValueError when it takes no attention function from outside.
    """
    active.attach(_base(model), NAME, _attention)
    return model


def detach(model: nn.Module) -> nn.Module:
    """Undo `attach`: the attention that was active, alone."""
    active.detach(_base(model))
    return model


def takes_shared(model: nn.Module) -> bool:
    """True after `attach`."""
    return active.attached(_base(model), NAME)


def hidden(model: nn.Module, batch: Batch) -> Tensor:
    """The last hidden states, after the model's last norm [T, d]. `attach` the model first, or ValueError."""
    base = _base(model)
    if not active.attached(base, NAME):
        raise ValueError("this model takes no rows behind a prefix: call layers.shared_prefix.attach first")
    device = next(base.parameters()).device
    output = trunk(base)(
        input_ids=batch.input_ids.to(device),
        attention_mask=batch.lengths.view(1, 1, 1, -1),  # the attention reads them as Python numbers, once a layer
        position_ids=batch.position_ids.to(device),
        use_cache=False,
    )
    return output.last_hidden_state[0]


# --- attention --------------------------------------------------------------------------------------------------------


class _Block(NamedTuple):
    """b rows of like length, filled up to L queries and W keys: the prefix's first, then the row's own.

    queries [b, L] and keys [b, W] are places in T (fillings repeat a token); real [b, L] is False for fillings and
    `own` [N] are its true places, laid flat; tokens [N] are their places in T; hidden [L, W] is True where a query does
    not see a key; prefix: how many of the keys are shared.
    """

    queries: Tensor
    keys: Tensor
    real: Tensor
    own: Tensor
    tokens: Tensor
    hidden: Tensor
    prefix: int


@lru_cache(maxsize=64)
def _blocks(lengths: tuple[int, ...], window: int | None, device: torch.device) -> tuple[_Block, ...]:
    """The prefix, then rows whose numbers of keys fill the same multiple of WIDTH."""
    P, *rest = lengths
    starts = [P]
    for length in rest:
        starts.append(starts[-1] + length)
    groups: dict[tuple[int, int], list[tuple[int, int]]] = {(0, -(-P // WIDTH) * WIDTH): [(0, P)]} if P else {}
    for start, length in zip(starts, rest, strict=False):
        groups.setdefault((P, -(-(P + length) // WIDTH) * WIDTH), []).append((start, length))
    blocks = []
    for (prefix, W), rows in groups.items():
        L = max(length for _, length in rows)
        own = torch.arange(W - prefix)
        first, size = torch.tensor(rows).T[:, :, None]
        places = first + torch.where(own < size, own, 0)
        shared = torch.arange(prefix).expand(len(rows), -1)
        queries, real = places[:, :L], (own < size)[:, :L]
        distance = prefix + torch.arange(L)[:, None] - torch.arange(W)[None]
        future = (distance < 0) | (distance >= (window or W + 1))
        flat = real.flatten().nonzero().flatten()
        tensors = (queries, torch.cat([shared, places], dim=1), real, flat, queries[real], future)
        blocks.append(_Block(*(tensor.contiguous().to(device) for tensor in tensors), prefix))
    return tuple(blocks)


def _attention(plain: active.Plain, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor) -> Tensor:
    """query [1, H, T, d], key and value [1, G, T, d], lengths [1, 1, 1, 1 + B] -> [1, T, H, d]."""
    known = tuple(lengths.flatten().tolist())
    return prefix_attention(query, key, value, known, plain.scale, plain.dropout, plain.window)


def prefix_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: tuple[int, ...],
    scale: float,
    dropout: float = 0.0,
    window: int | None = None,
) -> Tensor:
    """query [1, H, T, d], key and value [1, G, T, d], lengths as in Batch -> [1, T, H, d].

    window: no token looks further back than that many. Raises ValueError when the lengths do not fill T.
    """
    if query.shape[0] != 1 or sum(lengths) != query.shape[2] or key.shape[2] != query.shape[2]:
        raise ValueError(f"rows of {sum(lengths)} tokens do not fit a batch of {list(query.shape)}")
    longest = lengths[0] + max(lengths[1:])
    window = window if window is not None and window < longest else None
    blocks = _blocks(lengths, window, query.device)
    if query.device.type == "cpu" and longest <= BY_HAND and not dropout:
        return _ByHand.apply(query, key, value, blocks, scale)
    outs = []
    for block in blocks:
        q, k, v = (
            x[0].index_select(1, places.flatten()).view(x.shape[1], *places.shape, -1).transpose(0, 1)
            for x, places in ((query, block.queries), (key, block.keys), (value, block.keys))
        )
        o = F.scaled_dot_product_attention(
            q, k, v, ~block.hidden, dropout, scale=scale, enable_gqa=k.shape[1] != q.shape[1]
        )
        outs.append(o.transpose(1, 2)[block.real])
    order = torch.cat([block.tokens for block in blocks]).argsort()
    return torch.cat(outs)[order][None]


class _ByHand(torch.autograd.Function):
    """Block after block; all tensors are seen as [T, heads, d]."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)  # one dtype under autocast, which ends here
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, blocks: tuple[_Block, ...], scale: float) -> Tensor:
        _, H, T, d = query.shape
        G = key.shape[1]
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        out = query.new_empty(1, T, H, d)
        kept = []
        for block in blocks:
            b, L = block.queries.shape
            Q, K = _queries(q, block, G, scale), _keys(k, block)
            S = torch.bmm(Q, K.transpose(1, 2))
            S.view(b * G, H // G, L, -1).masked_fill_(block.hidden, -torch.inf)
            P = torch.softmax(S, -1)
            _put(out[0], torch.bmm(P, _keys(v, block)), block, G)
            kept.append(P)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.blocks, ctx.scale = blocks, scale
        return out

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        G = key.shape[1]
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
        prefix = None
        for block, P in zip(ctx.blocks, kept, strict=True):
            b, L = block.queries.shape
            real = block.real[:, None, None, :, None].to(upstream.dtype)
            dO = _queries(upstream[0], block, G, real)  # 0 for what is filled up
            K, V = _keys(k, block), _keys(v, block)
            dV = torch.bmm(P.transpose(1, 2), dO)
            dS = torch._softmax_backward_data(torch.bmm(dO, V.transpose(1, 2)), P, -1, P.dtype)
            _put(dq, torch.bmm(dS, K).mul_(ctx.scale), block, G)
            dK = torch.bmm(dS.transpose(1, 2), _queries(q, block, G, ctx.scale))
            sums = [_put_keys(target, gradient, block) for target, gradient in ((dk, dK), (dv, dV))]
            if block.prefix:
                prefix = sums if prefix is None else [a + b for a, b in zip(prefix, sums, strict=True)]
        if prefix is not None:
            for target, gradient in zip((dk, dv), prefix, strict=True):
                own = target[: len(gradient)]
                own.copy_(gradient + own)
        return *(x.transpose(0, 1)[None] for x in (dq, dk, dv)), None, None


def _queries(x: Tensor, block: _Block, G: int, factor: float | Tensor) -> Tensor:
    """[T, H, d] -> [b G, H/G L, d], times factor: the heads of one head of K and V under one another."""
    (b, L), (_, H, d) = block.queries.shape, x.shape
    rows = x.index_select(0, block.queries.flatten()).view(b, L, G, H // G, d).permute(0, 2, 3, 1, 4)
    out = x.new_empty(b, G, H // G, L, d)
    torch.mul(rows, factor, out=out)
    return out.view(b * G, H // G * L, d)


def _keys(x: Tensor, block: _Block) -> Tensor:
    """[T, G, d] -> [b G, W, d]."""
    (b, W), (_, G, d) = block.keys.shape, x.shape
    return x.index_select(0, block.keys.flatten()).view(b, W, G, d).transpose(1, 2).reshape(b * G, W, d)


def _put(target: Tensor, x: Tensor, block: _Block, G: int) -> None:
    """The inverse of `_queries`: the real ones of [b G, H/G L, d] into their places of target [T, H, d]."""
    (b, L), (_, H, d) = block.queries.shape, target.shape
    rows = x.view(b, G, H // G, L, d).permute(0, 3, 1, 2, 4).reshape(b * L, H, d)
    target.index_copy_(0, block.tokens, rows.index_select(0, block.own))


def _put_keys(target: Tensor, x: Tensor, block: _Block) -> Tensor:
    """The inverse of `_keys` for each row's own tokens; returns the sum over the rows for the shared ones [P, G, d]."""
    (b, L), (_, G, d) = block.queries.shape, target.shape
    x = x.view(b, G, -1, d)
    own = x[:, :, block.prefix : block.prefix + L].transpose(1, 2).reshape(b * L, G, d)
    target.index_copy_(0, block.tokens, own.index_select(0, block.own))
    return x[:, :, : block.prefix].sum(0, dtype=torch.promote_types(x.dtype, torch.float32)).transpose(0, 1)
