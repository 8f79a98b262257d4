"""Responses of the policy to a batch of prompts, drawn from the policy itself: no top-k, no top-p, no minimum length.

    y_t ~ softmax(z_t / T)        T = 0: y_t = argmax z_t

Anything that changes this distribution (transformers' `generate` applies top_k = 50 by default) would make the
log-probabilities of training those of another policy. A row ends with its stop token, which belongs to the response;
rows that have ended leave the batch, and the rollout ends with the last of them.

Each token is drawn by inverting the cumulative distribution with one uniform number, and the numbers of all rows and
steps are drawn at the start: what a row gets depends on its own numbers and not on when others end.

    rollout = sample(one, prompts, 24, [tokenizer.eos_token_id], tokenizer.pad_token_id, 0.7, generator)
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from learning.generate import pad_left
from learning.one_base import POLICY, OneBase


class Rollout(NamedTuple):
    """responses [B, R] int64 (pad id after the end), mask [B, R] bool (the end token included), ended [B] bool (False
    for a response that was cut), log_probs [B, R] float32 of the drawn tokens as they were drawn, 0 after the end."""

    responses: Tensor
    mask: Tensor
    ended: Tensor
    log_probs: Tensor


@torch.no_grad()
def sample(
    one: OneBase | nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: Sequence[int],
    pad_id: int,
    temperature: float,
    generator: torch.Generator | None = None,
) -> Rollout:
    """One response a prompt, of at most R = max_new_tokens tokens. `one`: a OneBase, or a plain causal language model.

    Greedy at temperature 0, when no generator is needed; log_probs are then those at temperature 1.
    Raises ValueError for no prompts, an empty prompt, a limit below 1, or a temperature without a generator.
    """
    if not prompts or any(not len(prompt) for prompt in prompts):
        raise ValueError("a rollout needs at least one prompt, and every prompt at least one token")
    if max_new_tokens < 1 or temperature < 0 or (temperature > 0 and generator is None):
        raise ValueError("max_new_tokens must be at least 1, and a temperature above 0 needs a generator")
    B, R = len(prompts), max_new_tokens
    numbers = torch.rand(B, R, generator=generator, dtype=torch.float64) if temperature else None
    if isinstance(one, OneBase):
        with one.using(POLICY):
            return _sample(one.model.get_base_model(), prompts, R, stop_ids, pad_id, temperature, numbers)
    return _sample(one, prompts, R, stop_ids, pad_id, temperature, numbers)


def _sample(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    R: int,
    stop_ids: Sequence[int],
    pad_id: int,
    temperature: float,
    numbers: Tensor | None,
) -> Rollout:
    device = next(model.parameters()).device
    B = len(prompts)
    responses = torch.full((B, R), pad_id)
    mask, ended, log_probs = torch.zeros(B, R, dtype=torch.bool), torch.zeros(B, dtype=torch.bool), torch.zeros(B, R)
    stops = torch.tensor(list(stop_ids), dtype=torch.int64)
    ids, seen = (tensor.to(device) for tensor in pad_left(prompts, pad_id))
    rows, cache = torch.arange(B), DynamicCache(config=model.config)
    for t in range(R):
        positions = (seen.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        logits = model(
            input_ids=ids, attention_mask=seen, position_ids=positions, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        tokens, log_p = (x.cpu() for x in draw(logits, temperature, None if numbers is None else numbers[rows, t]))
        responses[rows, t], mask[rows, t], log_probs[rows, t] = tokens, True, log_p
        stopped = torch.isin(tokens, stops)
        ended[rows[stopped]] = True
        going = (~stopped).nonzero().flatten()
        if not len(going) or t == R - 1:
            break
        if len(going) < len(rows):
            cache.batch_select_indices(going.to(device))
            rows, tokens, seen = rows[going], tokens[going], seen[going.to(device)]
        seen = torch.cat([seen, seen.new_ones(len(rows), 1)], dim=1)
        ids = tokens[:, None].to(device)
    return Rollout(responses, mask, ended, log_probs)


def draw(logits: Tensor, temperature: float, numbers: Tensor | None) -> tuple[Tensor, Tensor]:
    """One token a row and its log-probability: logits [B, V], uniform numbers [B] in [0, 1) -> int64 and float32 [B].

    The smallest v whose cumulative probability exceeds the number; a token of probability 0 is never drawn.
    """
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if not temperature:
        log_p = z.log_softmax(1)
        tokens = log_p.argmax(1)
    else:
        log_p = (z / temperature).log_softmax(1)
        total = log_p.exp().double().cumsum(1)
        wanted = numbers.to(total)[:, None] * total[:, -1:]
        tokens = torch.searchsorted(total, wanted, right=True)[:, 0]
    return tokens, log_p.gather(1, tokens[:, None])[:, 0].float()
