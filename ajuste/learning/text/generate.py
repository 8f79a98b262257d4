"""Greedy answers of a decoder to many prompts at once, token for token what each prompt alone would get.

    y_t = argmax_v p(v | x, y_<t)        until a stop token or the row's limit

Prompts are sorted by length and padded on the left, so that all rows of a batch write their next token in the same
column; the attention mask hides the padding and positions count the real tokens. Keys and values are kept from step
to step. A row that has ended leaves its batch at once, so that nothing is computed for it any more.
Works for plain models, for adapters of PEFT inside the layers, for bottleneck layers, and for prompt and prefix
tuning, whose virtual tokens stand before the padding: as embeddings, or as keys and values.

    generate(model, [[1, 5, 9], [1, 7]], max_new_tokens=64, stop_ids=[2], pad_id=0)      # [[11, 4, 2], [8, 2]]

Sums of another shape round in another way: in float32 the tokens are equal unless two are as good as tied; in
bfloat16 a batch may differ from a row alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache


@torch.no_grad()  # not inference_mode: buffers cached inside would be unusable for training afterwards
def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int],
    stop_ids: Sequence[int],
    pad_id: int,
    batch_rows: int = 16,
) -> list[list[int]]:
    """The answers in the order of `prompts` (token ids), each with the stop token that ended it, if one did.

    max_new_tokens: one limit for all rows, or one a row. Raises ValueError for an empty prompt or a limit below 1.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    if len(limits) != len(prompts) or any(limit < 1 for limit in limits):
        raise ValueError("max_new_tokens must be at least 1, one number for all rows or one a row")
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {i} has no tokens: there is nothing to answer")
    answers: list[list[int]] = [[] for _ in prompts]
    lengths = [len(prompt) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: (-lengths[i], i))
    equal = counts_padding(model)
    batches: list[list[int]] = []
    for i in order:
        if not batches or len(batches[-1]) == batch_rows or (equal and lengths[batches[-1][0]] != lengths[i]):
            batches.append([])
        batches[-1].append(i)
    training = model.training
    model.eval()
    try:
        for rows in batches:
            _answer(model, rows, prompts, limits, frozenset(stop_ids), pad_id, answers)
    finally:
        model.train(training)
    return answers


def _answer(
    model: nn.Module,
    rows: list[int],
    prompts: Sequence[Sequence[int]],
    limits: list[int],
    stop_ids: frozenset[int],
    pad_id: int,
    answers: list[list[int]],
) -> None:
    """Extend `answers[i]` for the rows of one batch until all have ended."""
    ids, mask = pad_left([prompts[i] for i in rows], pad_id)
    device = next(model.parameters()).device
    model, inputs, mask, cache = begin(model, ids.to(device), mask.to(device))
    while True:
        width = next(iter(inputs.values())).shape[1]
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -width:]
        output = model(
            **inputs, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        )
        cache, tokens = output.past_key_values, output.logits[:, -1].argmax(dim=-1)
        going = []
        for place, (i, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            answers[i].append(token)
            if token not in stop_ids and len(answers[i]) < limits[i]:
                going.append(place)
        if not going:
            return
        if len(going) < len(rows):
            kept = torch.tensor(going, device=device)
            cache.reorder_cache(kept)
            mask, tokens, rows = mask[kept], tokens[kept], [rows[place] for place in going]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        inputs = {"input_ids": tokens.unsqueeze(1)}


def counts_padding(model: nn.Module) -> bool:
    """Do the layers count columns, padding included? So do those that see chunks (Llama 4): rows of one length then."""
    config = getattr(model, "config", None)
    kinds = getattr(config.get_text_config(), "layer_types", None) if hasattr(config, "get_text_config") else None
    return any("chunk" in kind for kind in kinds or ())


def begin(model: nn.Module, ids: Tensor, mask: Tensor) -> tuple[nn.Module, dict[str, Tensor], Tensor, DynamicCache]:
    """The module to call, its first inputs, the mask over virtual and real tokens [B, V + T], and the cache.

    Only prompt and prefix tuning have virtual tokens. PEFT's own forward would add them again at every step.
    """
    config = getattr(model, "active_peft_config", None)
    if config is None or not config.is_prompt_learning:
        return model, {"input_ids": ids}, mask, DynamicCache(config=model.config)
    base, virtual = model.get_base_model(), model.get_prompt(len(ids))
    mask = torch.cat([mask.new_ones(len(ids), config.num_virtual_tokens), mask], dim=1)
    if isinstance(virtual, Tensor):
        embedded = base.get_input_embeddings()(ids)
        inputs = {"inputs_embeds": torch.cat([virtual.to(embedded.dtype), embedded], dim=1)}
        return base, inputs, mask, DynamicCache(config=base.config)
    return base, {"input_ids": ids}, mask, virtual


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids of unequal length -> (ids, attention mask), both int64 [B, longest], padded on the left."""
    ids = torch.full((len(rows), max(map(len, rows))), pad_id)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, -len(row) :] = torch.as_tensor(row)
        mask[i, -len(row) :] = 1
    return ids, mask
