"""Rows through a causal language model, in one of three forms: hidden states at chosen places, and logits of some.

    shared    without padding, what all begin with once (ajuste/learning/layers/shared_prefix.py)
    padded    padded on the right, through transformers' own trunk: for what is no plain attention
    whole     padded too, and the logits are the model's own: for an output layer that no `Head` describes

Which one is right for a model says the probe (ajuste/models/probe/). Places are (row, position) pairs.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ajuste.learning.layers import ragged, shared_prefix
from ajuste.learning.rl.token_log_probs import Head

Form = Literal["shared", "padded", "whole"]


class Passed(NamedTuple):
    """hidden [N, d], after the model's last norm; logits [N, V] of the form `whole`, else None."""

    hidden: Tensor
    logits: Tensor | None


def passed(model: nn.Module, form: Form, rows: Sequence[Sequence[int]], row: Tensor, position: Tensor) -> Passed:
    """What stands at the places (row [N], position [N]) of rows of token ids. `model`: of transformers, or PEFT's."""
    if form == "shared":
        batch = shared_prefix.collate(rows)
        hidden = shared_prefix.hidden(model, batch)
        return Passed(hidden[batch.places(row, position).to(hidden.device)], None)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    batch = ragged.padded([(ids, ids) for ids in rows], pad_id=0)
    device = next(base.parameters()).device
    inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
    row, position = row.to(device), position.to(device)
    if form == "padded":
        return Passed(ragged.trunk(base)(**inputs, use_cache=False).last_hidden_state[row, position], None)
    columns, place = position.unique(return_inverse=True)
    seen: list[Tensor] = []
    hook = ragged.trunk(base).register_forward_hook(lambda module, args, output: seen.append(output.last_hidden_state))
    try:
        logits = base(**inputs, use_cache=False, logits_to_keep=columns - inputs["input_ids"].shape[1]).logits
    finally:
        hook.remove()
    return Passed(seen[0][row, position], logits[row, place])


def head_of(model: nn.Module) -> Head:
    """The output layer as far as transformers names its parts. The probe says whether that is all of it."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    layer, config = base.get_output_embeddings(), base.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0  # Cohere's and Falcon-H1's multiply, Granite's divides
    return Head(layer.weight, layer.bias, float(scale), getattr(config, "final_logit_softcapping", None))


def after(mask: Tensor) -> Tensor:
    """[B, R + 1] for a mask of responses [B, R]: True before each token and after the last."""
    return torch.cat([mask.new_ones(len(mask), 1), mask], dim=1)
