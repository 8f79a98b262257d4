"""Our attention beside the one that was active: for batches in our form, and for no others.

    name of the attention      rows_or_sdpa       ours for a batch of lengths, and for every other one the attention
                                                  that was active, with all its arguments and its own kind of mask

transformers finds an attention function by name in one table. A name of our own there would replace the active one for
ordinary batches too, so the name says which one that was, and it is called as the model would have called it: eager
with its sinks, soft cap or position bias, SDPA as this model has it.

Our form of a batch carries the lengths of its rows in the place of the mask (ragged.py, shared_prefix.py). Nothing but
plain causal attention with or without a window is computed for it: `plain_arguments` refuses every other argument.
What cannot be seen here, such as layers that are no attention, is found by the probe (ajuste/models/probe/).
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

OR = "_or_"
REPLACED = ("sdpa", "eager")  # the kinds of attention that batches with padding can go through
# what transformers hands down with every call and changes no product
WITHOUT_EFFECT = frozenset(
    ("position_ids", "cache_position", "use_cache", "past_key_values", "output_attentions", "output_hidden_states",
     "return_dict", "logits_to_keep", "num_items_in_batch", "is_causal", "cu_seq_lens_q", "cu_seq_lens_k",
     "position_embeddings", "output_router_logits")
)  # fmt: skip
Attention = Callable[..., tuple[Tensor, Tensor | None]]
Ours = Callable[["Plain", Tensor, Tensor, Tensor, Tensor], Tensor]  # lengths last -> [1, T, H, d]


class Plain(NamedTuple):
    """All that causal attention needs beside its tensors; window: no token looks further back than that many."""

    scale: float
    dropout: float
    window: int | None


def attach(model: nn.Module, name: str, ours: Ours) -> None:
    """Let `model`, of transformers and without PEFT, send batches of lengths through `ours`.

    Raises ValueError when the architecture takes no attention function from outside.
    """
    before = active(model)
    if before not in REPLACED:
        raise ValueError(f"attention `{before}` cannot stand beside rows without padding")
    both = f"{name}{OR}{before}"
    AttentionInterface.register(both, partial(_attention, before, ours))
    AttentionMaskInterface.register(both, ALL_MASK_ATTENTION_FUNCTIONS[before])
    model.set_attn_implementation(both)
    if model.config._attn_implementation != both:
        raise ValueError(f"{type(model).__name__} takes no attention function from outside")


def detach(model: nn.Module) -> None:
    """The attention that was active, alone again."""
    if OR in model.config._attn_implementation:
        model.set_attn_implementation(active(model))


def attached(model: nn.Module, name: str) -> bool:
    """Does the model send batches of lengths through the attention of that name?"""
    return model.config._attn_implementation.startswith(name + OR)


def active(model: nn.Module) -> str:
    """transformers' name of the attention of ordinary batches."""
    return model.config._attn_implementation.rsplit(OR, 1)[-1]


def plain_arguments(module: nn.Module, query: Tensor, arguments: dict) -> Plain:
    """The arguments of an attention call, if it is causal attention with or without a window and nothing more.

    Raises ValueError, naming it, for any other argument, and for a window or chunk that the call does not name.
    """
    known = ("scaling", "dropout", "sliding_window")
    unknown = [name for name, value in arguments.items() if name not in (*known, *WITHOUT_EFFECT) and value is not None]
    if unknown or arguments.get("is_causal") is False:
        what = f"argument `{unknown[0]}`" if unknown else "the view in both directions"
        raise ValueError(f"{what} of {type(module).__name__} would be lost without padding")
    window, scale = arguments.get("sliding_window"), arguments.get("scaling")
    _refuse_hidden_window(module, window, "sliding_window" in arguments)
    return Plain(query.shape[-1] ** -0.5 if scale is None else scale, arguments.get("dropout", 0.0), window)


def _refuse_hidden_window(module: nn.Module, window: int | None, named: bool) -> None:
    """What a layer sees may be cut in the mask alone, which a batch of lengths does not have."""
    config, number = getattr(module, "config", None), getattr(module, "layer_idx", None)
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        wrong = not named and getattr(config, "sliding_window", None) is not None
    else:
        own = kinds if number is None else [kinds[number]]
        wrong = any("chunk" in kind or ("sliding" in kind) != (window is not None) for kind in own)
    if wrong:
        raise ValueError(f"the window of {type(module).__name__} would be lost without padding")


def _attention(
    before: str,
    ours: Ours,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **arguments,
) -> tuple[Tensor, Tensor | None]:
    """Attention in transformers' form: query [B, H, T, d], key and value [B, G, T, d] -> [B, T, H, d].

    An `attention_mask` of integers [1, 1, 1, n] is no mask but the lengths.
    """
    if attention_mask is None or attention_mask.dtype != torch.int64:
        return _of_model(module, before)(module, query, key, value, attention_mask, **arguments)
    return ours(plain_arguments(module, query, arguments), query, key, value, attention_mask), None


def _of_model(module: nn.Module, name: str) -> Attention:
    """The function that the file of this architecture means by `sdpa` or `eager`."""
    for kind in type(module).__mro__:  # FSDP makes a class of its own above
        there = sys.modules.get(kind.__module__)
        if hasattr(there, "eager_attention_forward"):
            table = getattr(there, "ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS)
            return there.eager_attention_forward if name == "eager" else table[name]
    return ALL_ATTENTION_FUNCTIONS[name]
