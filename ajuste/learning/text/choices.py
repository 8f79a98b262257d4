"""The log-likelihood of given answers: which of several does a decoder find most likely?

    log p(c | x) = sum_t log p(c_t | x, c_<t)             the prompt x is read once, whatever the number of answers c

    plain        argmax_c log p(c | x)                    answers of one length ("yes", "no")
    normalised   argmax_c log p(c | x) / characters(c)    sentences: a long one is no less likely for it

This is how lm-evaluation-harness scores multiple choice (Gao et al. 2024, zenodo.12608602): its `acc` and `acc_norm`.

    log_likelihoods(model, [([1, 5, 9], [[4], [7, 2]])], pad_id=0)      # [[-0.9, -3.1]]
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ajuste.learning.text.generate import begin, counts_padding, pad_left

Question = tuple[Sequence[int], Sequence[Sequence[int]]]  # the prompt's ids and the ids of each choice


@torch.no_grad()  # not inference_mode: buffers cached inside would be unusable for training afterwards
def log_likelihoods(
    model: nn.Module, questions: Sequence[Question], pad_id: int, tokens_per_batch: int = 4096
) -> list[list[float]]:
    """log p of each choice of each question, in nats and in their order; the sum of float32 log-probabilities.

    Questions are sorted by length and padded on the left; a batch holds at most `tokens_per_batch` tokens of prompts
    and choices (or one question). Works for every kind of model that ajuste/learning/text/generate.py answers with.
    Raises ValueError for an empty prompt or an empty choice.
    """
    for i, (prompt, choices) in enumerate(questions):
        if not len(prompt) or not choices or not all(len(choice) for choice in choices):
            raise ValueError(f"question {i} has an empty prompt, no choices or an empty one")
    found: list[list[float]] = [[] for _ in questions]
    training = model.training
    model.eval()
    try:
        for batch in _batches(questions, tokens_per_batch, counts_padding(model)):
            for i, scores in zip(batch, _score(model, [questions[i] for i in batch], pad_id), strict=True):
                found[i] = scores
    finally:
        model.train(training)
    return found


def _batches(questions: Sequence[Question], tokens: int, equal: bool) -> list[list[int]]:
    """Numbers of the questions, those with long prompts first, cut by the tokens that a batch holds with padding.

    equal: and where the length of the prompts changes.
    """
    batches: list[list[int]] = []
    held = tokens
    for i in sorted(range(len(questions)), key=lambda i: (-len(questions[i][0]), i)):
        prompt, choices = questions[i]
        wide = len(questions[batches[-1][0]][0]) if batches else len(prompt)
        held += wide + len(choices) * max(map(len, choices))
        if held > tokens or (equal and wide != len(prompt)):
            batches.append([])
            held = len(prompt) + len(choices) * max(map(len, choices))
        batches[-1].append(i)
    return batches


def _score(model: nn.Module, questions: list[Question], pad_id: int) -> list[list[float]]:
    """log p of the choices of one batch."""
    ids, mask = pad_left([prompt for prompt, _ in questions], pad_id)
    device = next(model.parameters()).device
    model, inputs, mask, cache = begin(model, ids.to(device), mask.to(device))
    width = next(iter(inputs.values())).shape[1]
    output = model(
        **inputs, attention_mask=mask, position_ids=_positions(mask)[:, -width:], past_key_values=cache,
        use_cache=True, logits_to_keep=1,
    )  # fmt: skip
    choices = [list(choice) for _, some in questions for choice in some]
    owners = torch.tensor([row for row, (_, some) in enumerate(questions) for _ in some], device=device)
    first = torch.log_softmax(output.logits[:, -1].float(), dim=-1)
    scores = first[owners, torch.tensor([choice[0] for choice in choices], device=device)]
    longer = [i for i, choice in enumerate(choices) if len(choice) > 1]
    if longer:
        cache = output.past_key_values
        cache.reorder_cache(owners[longer])
        scores[longer] += _rest(model, cache, mask[owners[longer]], [choices[i] for i in longer], pad_id)
    values = iter(scores.tolist())
    return [[next(values) for _ in some] for _, some in questions]


def _rest(model: nn.Module, cache: object, mask: Tensor, choices: list[list[int]], pad_id: int) -> Tensor:
    """Sum of log p over all tokens of the choices but their first, after the cached prompts: float32 [R]."""
    pad = nn.utils.rnn.pad_sequence
    rows = [torch.tensor(choice, device=mask.device) for choice in choices]
    ids = pad([row[:-1] for row in rows], batch_first=True, padding_value=pad_id)
    targets = pad([row[1:] for row in rows], batch_first=True, padding_value=-1)
    mask = torch.cat([mask, (targets >= 0).to(mask.dtype)], dim=1)
    # a state-space layer may begin anew when it is given several tokens behind a state (Jamba): one at a time then
    states = any(hasattr(layer, "conv_states") for layer in cache.layers)
    parts, end, every = [], mask.shape[1] - ids.shape[1], _positions(mask)
    for part in ids.split(1 if states else max(1, ids.shape[1]), dim=1):
        here, end = end, end + part.shape[1]
        parts.append(
            model(
                input_ids=part, attention_mask=mask[:, :end], position_ids=every[:, here:end], past_key_values=cache,
                use_cache=True,
            ).logits
        )  # fmt: skip
    logits = torch.cat(parts, dim=1) if states else parts[0]
    losses = [  # a row at a time: float32 logits of a whole batch are gigabytes
        nn.functional.cross_entropy(row.float(), wanted, ignore_index=-1, reduction="sum")
        for row, wanted in zip(logits, targets, strict=True)
    ]
    return -torch.stack(losses)


def _positions(mask: Tensor) -> Tensor:
    """Position of every column among the real tokens: [B, T]."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)
