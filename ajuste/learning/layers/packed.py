"""A Llama that answers: the same arithmetic as transformers' with a third of its steps, for a few tokens at a time.

    [q k v] = x [W_q W_k W_v]^T + (x [A_q A_k A_v]^T) diag(B_q, B_k, B_v)^T       likewise [gate up], o and down

One token of 16 rows is so little work that reading the weights and starting the operations is what takes time. So the
projections that read the same x are one product, the weights are laid out once as oneDNN wants them (it would do so at
every call), keys and values are written into a cache made for the whole rollout, and an adapter is added to each
product as it stands: merged into bfloat16 weights its small steps would be rounded away, and another policy would
answer than the one that learns.

The prompts go through as rows behind a prefix (shared_prefix.py), what they share once; then each row's keys stand at
the right, so that all rows write their next token in the same column, and a mask hides what is left of them.

    packed = pack(model)                                  # None for an architecture that this does not describe
    run = packed.begin(prompts, max_new_tokens, "policy")     # logits [B, V] of the first tokens: run.logits
    logits = run.step(tokens)                             # tokens [B] -> logits [B, V]
    run.keep(rows)                                        # those that go on

It holds a copy of the weights in their own dtype. Test: tests/learning/test_rollout.py.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from ajuste.learning.layers.fused import _described
from ajuste.learning.layers.shared_prefix import collate, prefix_attention

GROUPS = (("self_attn", ("q_proj", "k_proj", "v_proj")), ("self_attn", ("o_proj",)),
          ("mlp", ("gate_proj", "up_proj")), ("mlp", ("down_proj",)))  # fmt: skip
Product = Callable[[Tensor], Tensor]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # layer, q [N, H, d], k and v [N, G, d] -> [N, H, d]
Low = tuple[Tensor, Tensor] | None  # A^T [k, n r] and the B of n projections as blocks [n r, d]


class Packed(NamedTuple):
    """A model and, for each of its layers, the products of GROUPS; `head` is the output layer."""

    model: LlamaForCausalLM
    products: list[list[Product]]
    head: Product

    @torch.no_grad()
    def begin(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, adapter: str | None = None) -> "Run":
        """Read the prompts, with the adapter of that name or none, and make room for max_new_tokens."""
        return Run(self, prompts, max_new_tokens, adapter)


def pack(model: nn.Module) -> Packed | None:
    """`model`: a causal language model of transformers, adapters of PEFT inside its layers or not, or PEFT's own.

    None for anything but a Llama whose projections are plain layers without bias, or LoRA's beside such, and whose
    rotary frequencies do not depend on how long a row is.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    if type(model) is not LlamaForCausalLM or model.model.rotary_emb.rope_type in ("dynamic", "longrope"):
        return None
    products = []
    for layer in model.model.layers:
        groups = [[getattr(getattr(layer, part), name) for name in names] for part, names in GROUPS]
        if not all(_plain(linear) for group in groups for linear in group):
            return None
        products.append([_product([_weight(linear) for linear in group]) for group in groups])
    return Packed(model, products, _product([model.lm_head.weight]))


def _plain(linear: nn.Module) -> bool:
    base = getattr(linear, "base_layer", linear)
    return type(base) is nn.Linear and base.bias is None and (base is linear or _described(linear))


def _weight(linear: nn.Module) -> Tensor:
    return getattr(linear, "base_layer", linear).weight


def _product(weights: list[Tensor]) -> Product:
    """x [N, k] -> x W^T [N, d] with the rows of all weights as W [d, k]."""
    W = torch.cat([weight.detach() for weight in weights]) if len(weights) > 1 else weights[0].detach()
    if W.device.type == "cpu" and W.dtype in (torch.float32, torch.bfloat16):
        try:
            laid_out = torch.ops.mkldnn._reorder_linear_weight(W, 16)
            torch.ops.mkldnn._linear_pointwise(W.new_zeros(1, W.shape[1]), laid_out, None, "none", [], "")
        except (AttributeError, RuntimeError):  # a torch without oneDNN, or a processor that it does not serve
            pass
        else:
            return lambda x: torch.ops.mkldnn._linear_pointwise(x, laid_out, None, "none", [], "")
    return lambda x: F.linear(x, W)


def _low(linears: list[nn.Module], adapter: str | None, dtype: torch.dtype) -> Low:
    """The adapter of the projections of one product, its scale in B."""
    held = [linear if adapter in getattr(linear, "lora_A", ()) else None for linear in linears]
    if not any(linear is not None for linear in held):
        return None
    As, Bs = [], []
    for linear, one in zip(linears, held, strict=True):
        if one is None:
            As.append(_weight(linear).new_zeros(0, _weight(linear).shape[1]))
            Bs.append(_weight(linear).new_zeros(0, _weight(linear).shape[0]))
        else:
            As.append(one.lora_A[adapter].weight.to(dtype))
            Bs.append((one.lora_B[adapter].weight * one.scaling[adapter]).t().to(dtype))
    return torch.cat(As).t().contiguous(), torch.block_diag(*Bs)


class Run:
    """One rollout: `logits` [B, V] of the next token of each row."""

    def __init__(self, packed: Packed, prompts: Sequence[Sequence[int]], room: int, adapter: str | None) -> None:
        self.packed, model = packed, packed.model
        config, device, dtype = model.config, model.device, model.dtype
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.size = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.scale = self.size**-0.5
        self.low = [
            [_low([getattr(getattr(layer, part), name) for name in names], adapter, dtype) for part, names in GROUPS]
            for layer in model.model.layers
        ]
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        self.width, B = int(lengths.max()), len(prompts)
        # on a CPU products of a few queries are twice as fast in float32, and the cache is small
        self.kind = torch.promote_types(dtype, torch.float32) if device.type == "cpu" else dtype
        self.cache = torch.zeros(
            len(self.low), 2, B, self.groups, self.width + room, self.size, dtype=self.kind, device=device
        )
        column = torch.arange(self.width + room) - (self.width - lengths)[:, None]  # below 0: left of the row
        self.mask = torch.zeros(B, self.groups, 1, self.width + room, dtype=self.kind, device=device)
        self.mask.masked_fill_((column < 0).to(device)[:, None, None], -torch.inf)
        every = torch.arange(self.width + room, device=device)[None]
        cos, sin = (x[0] for x in model.model.rotary_emb(torch.empty(0, dtype=dtype, device=device), every))
        self.cos, self.sin = cos, torch.cat([-sin[:, : self.size // 2], sin[:, self.size // 2 :]], dim=1)
        self.positions = lengths.to(device)
        self._read(prompts, column[:, : self.width])

    def _read(self, prompts: Sequence[Sequence[int]], column: Tensor) -> None:
        """The prompts' keys and values into the cache, and the first logits."""
        batch = collate(prompts)
        device = self.cache.device
        row = torch.arange(len(prompts))[:, None]
        places = batch.places(row, column.clamp(min=0)).to(device)
        lengths = tuple(batch.lengths.tolist())

        def attend(number: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            for target, x in zip(self.cache[number], (k, v), strict=True):
                target[:, :, : self.width] = x[places].transpose(1, 2)
            q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
            return prefix_attention(q, k, v, lengths, self.scale)[0]

        h = self._layers(batch.input_ids[0].to(device), batch.position_ids[0].to(device), attend)
        self.logits = self._logits(h[places[:, -1]])

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to each row [B] int64; returns the logits of the next [B, V], which stay in `logits`."""
        B, G, end = len(tokens), self.groups, self.width + 1
        mask = self.mask[..., :end].reshape(B * G, 1, end)

        def attend(number: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self.cache[number]
            keys[:, :, self.width], values[:, :, self.width] = k, v
            # the heads that share a head of K and V are as many queries of one head
            q = q.reshape(B * G, -1, self.size).to(self.kind)
            K, V = (x.view(B * G, -1, self.size)[:, :end] for x in (keys, values))
            S = torch.baddbmm(mask, q, K.transpose(1, 2), alpha=self.scale)
            return torch.bmm(torch.softmax(S, -1), V).to(v.dtype)

        h = self._layers(tokens.to(self.cache.device), self.positions, attend)
        self.width, self.positions = end, self.positions + 1
        self.logits = self._logits(h)
        return self.logits

    def keep(self, rows: Tensor) -> None:
        """Let all rows but these leave [B'] int64."""
        rows = rows.to(self.cache.device)
        used = self.cache[..., : self.width, :].index_select(2, rows)
        self.cache = self.cache[:, :, : len(rows)]  # the beginning of the same memory
        self.cache[..., : self.width, :] = used
        self.positions, self.logits = self.positions[rows], self.logits[rows]
        self.mask = self.mask[rows]

    def _logits(self, h: Tensor) -> Tensor:
        return self.packed.head(h.to(self.packed.model.lm_head.weight.dtype))

    def _layers(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Token ids [N] at positions [N] -> the last hidden states [N, d], after the last norm."""
        model, H, G = self.packed.model.model, self.heads, self.groups
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        x = model.embed_tokens(ids)
        for number, (layer, products, low) in enumerate(zip(model.layers, self.packed.products, self.low, strict=True)):
            qkv, o, gate_up, down = ((product, pair) for product, pair in zip(products, low, strict=True))
            heads = _apply(_norm(x, layer.input_layernorm), *qkv).view(len(ids), H + 2 * G, self.size)
            turned = heads[:, : H + G]
            turned = torch.addcmul(turned * cos, turned.roll(self.size // 2, -1), sin)
            attended = attend(number, turned[:, :H], turned[:, H:], heads[:, H + G :])
            x = x + _apply(attended.reshape(len(ids), -1), *o)
            gate, up = _apply(_norm(x, layer.post_attention_layernorm), *gate_up).chunk(2, dim=1)
            x = x + _apply(layer.mlp.act_fn(gate).mul_(up), *down)
        return _norm(x, model.norm)


def _apply(x: Tensor, product: Product, low: Low) -> Tensor:
    y = product(x)
    return y if low is None else y.addmm_(x @ low[0], low[1])


def _norm(x: Tensor, norm: nn.Module) -> Tensor:
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
