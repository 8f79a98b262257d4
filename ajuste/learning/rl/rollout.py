"""Responses of the policy to a batch of prompts, drawn from the policy itself: no top-k, no top-p, no minimum length.

    y_t ~ softmax(z_t / T)        T = 0: y_t = argmax z_t

Anything that changes this distribution (transformers' `generate` applies top_k = 50 by default) would make the
log-probabilities of training those of another policy. A row ends with its stop token, which belongs to the response;
rows that have ended leave the batch, and the rollout ends with the last of them.

Each token is drawn by inverting the cumulative distribution with one uniform number, and the numbers of all rows and
steps are drawn at the start: what a row gets depends on its own numbers and not on when others end.

Who answers is anything that begins a run: `Answers` makes that of a causal language model, and the one base of
ajuste/models answers with its policy.

    rollout = sample(Answers(model), prompts, 24, [tokenizer.eos_token_id], tokenizer.pad_token_id, 0.7, generator)
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache

from ajuste.learning.layers.packed import pack
from ajuste.learning.text.generate import pad_left

Form = Literal["packed", "padded", "apart"]
BLOCK = 256  # tokens whose probabilities are summed at once


class Run(Protocol):
    """A batch of rows in the middle of its answers: `logits` [B, V] are those of each row's next token."""

    logits: Tensor

    def step(self, tokens: Tensor) -> None:
        """Append a token [B] to each row; afterwards `logits` are those of the next one."""

    def keep(self, rows: Tensor) -> None:
        """Go on with the rows of these numbers only."""


class Policy(Protocol):
    """Whatever can answer prompts."""

    def begin(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Run:
        """Read the prompts and make room for max_new_tokens more a row."""


class Rollout(NamedTuple):
    """responses [B, R] int64 (pad id after the end), mask [B, R] bool (the end token included), ended [B] bool (False
    for a response that was cut), log_probs [B, R] float32 of the drawn tokens as they were drawn, 0 after the end."""

    responses: Tensor
    mask: Tensor
    ended: Tensor
    log_probs: Tensor


class Answers:
    """A causal language model of transformers as a policy, with the active adapter of PEFT if it has one.

    adapter: that adapter's name, None for a model without. form: how the rows of a batch go together.
        packed    the weights that do not learn are laid out once, for all runs (ajuste/learning/layers/packed.py); an
                  architecture that it does not describe goes through transformers, padded
        padded    transformers' forward, padding on the left
        apart     transformers' forward, rows of one length at a time and no padding
    """

    def __init__(self, model: nn.Module, adapter: str | None = None, form: Form = "packed") -> None:
        self.model, self.adapter, self.form = model, adapter, form
        self.packed = pack(model) if form == "packed" else None

    def begin(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Run:
        if self.packed is not None:
            return self.packed.begin(prompts, max_new_tokens, self.adapter)
        model = self.model.get_base_model() if self.adapter else self.model
        return _Apart(model, prompts) if self.form == "apart" else _Plain(model, prompts)


@torch.no_grad()
def sample(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: Sequence[int],
    pad_id: int,
    temperature: float,
    generator: torch.Generator | None = None,
) -> Rollout:
    """One response a prompt, of at most R = max_new_tokens tokens; pad_id stands behind a response's end.

    Greedy at temperature 0, when no generator is needed; log_probs are then those at temperature 1.
    Raises ValueError for no prompts, an empty prompt, a limit below 1, or a temperature without a generator.
    """
    if not prompts or any(not len(prompt) for prompt in prompts):
        raise ValueError("a rollout needs at least one prompt, and every prompt at least one token")
    if max_new_tokens < 1 or temperature < 0 or (temperature > 0 and generator is None):
        raise ValueError("max_new_tokens must be at least 1, and a temperature above 0 needs a generator")
    B, R = len(prompts), max_new_tokens
    numbers = torch.rand(B, R, generator=generator, dtype=torch.float64) if temperature else None
    run = policy.begin(prompts, R)
    responses = torch.full((B, R), pad_id)
    mask, ended, log_probs = torch.zeros(B, R, dtype=torch.bool), torch.zeros(B, dtype=torch.bool), torch.zeros(B, R)
    stops, rows = torch.tensor(list(stop_ids), dtype=torch.int64), torch.arange(B)
    for t in range(R):
        tokens, log_p = draw(run.logits, temperature, None if numbers is None else numbers[rows, t])
        tokens = tokens.cpu()
        responses[rows, t], mask[rows, t], log_probs[rows, t] = tokens, True, log_p.cpu()
        stopped = torch.isin(tokens, stops)
        ended[rows[stopped]] = True
        going = (~stopped).nonzero().flatten()
        if not len(going) or t == R - 1:
            break
        if len(going) < len(rows):
            run.keep(going)
            rows, tokens = rows[going], tokens[going]
        run.step(tokens)
    return Rollout(responses, mask, ended, log_probs)


class _Plain:
    """A run of any architecture: transformers' forward, left padding, which the mask hides, and a growing cache."""

    def __init__(self, model: nn.Module, prompts: Sequence[Sequence[int]]) -> None:
        self.model, self.cache = model, DynamicCache(config=model.config)
        ids, self.mask = (tensor.to(model.device) for tensor in pad_left(prompts, 0))
        self._forward(ids)

    def _forward(self, ids: Tensor) -> None:
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        self.logits = self.model(
            input_ids=ids, attention_mask=self.mask, position_ids=positions, past_key_values=self.cache,
            use_cache=True, logits_to_keep=1,
        ).logits[:, -1]  # fmt: skip

    def step(self, tokens: Tensor) -> None:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self._forward(tokens[:, None].to(self.mask.device))

    def keep(self, rows: Tensor) -> None:
        rows = rows.to(self.mask.device)
        self.cache.reorder_cache(rows)
        self.mask, self.logits = self.mask[rows], self.logits[rows]


class _Apart:
    """Runs of rows of one length each, for an architecture that padding on the left disturbs."""

    def __init__(self, model: nn.Module, prompts: Sequence[Sequence[int]]) -> None:
        lengths = [len(prompt) for prompt in prompts]
        self.rows = [  # the numbers of each run's rows, ascending
            [i for i, own in enumerate(lengths) if own == length] for length in sorted(set(lengths))
        ]
        self.runs = [_Plain(model, [prompts[i] for i in rows]) for rows in self.rows]
        self._join()

    def _join(self) -> None:
        order = torch.tensor([i for rows in self.rows for i in rows]).argsort()
        logits = torch.cat([run.logits for run in self.runs])
        self.logits = logits[order.to(logits.device)]

    def step(self, tokens: Tensor) -> None:
        for run, rows in zip(self.runs, self.rows, strict=True):
            run.step(tokens[rows])
        self._join()

    def keep(self, rows: Tensor) -> None:
        number = {old: new for new, old in enumerate(rows.tolist())}
        kept = []
        for run, own in zip(self.runs, self.rows, strict=True):
            places = [place for place, row in enumerate(own) if row in number]
            if places:
                run.keep(torch.tensor(places))
                kept.append((run, [number[own[place]] for place in places]))
        self.runs, self.rows = [run for run, _ in kept], [own for _, own in kept]
        self._join()


def draw(logits: Tensor, temperature: float, numbers: Tensor | None) -> tuple[Tensor, Tensor]:
    """One token a row and its log-probability: logits [B, V], uniform numbers [B] in [0, 1) -> int64 and float32 [B].

    The smallest v whose cumulative probability exceeds the number, in float64; a token of probability 0 is never drawn.
    """
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if not temperature:
        log_p = z.log_softmax(1)
        tokens = log_p.argmax(1)
    else:
        log_p = (z / temperature).log_softmax(1)
        tokens = _inverted(log_p.exp(), numbers.to(z.device, torch.float64))
    return tokens, log_p.gather(1, tokens[:, None])[:, 0].float()


def _inverted(p: Tensor, numbers: Tensor) -> Tensor:
    """p [B, V], numbers [B] -> tokens [B]: first the block of BLOCK tokens in which a number falls, then the token."""
    p = F.pad(p, (0, -p.shape[1] % BLOCK)).view(len(p), -1, BLOCK)
    sums = p.sum(2, dtype=torch.float64)
    ends = sums.cumsum(1)
    wanted = numbers[:, None] * ends[:, -1:]
    block = torch.searchsorted(ends, wanted, right=True).clamp(max=_last(sums))
    inside = p[torch.arange(len(p), device=p.device), block[:, 0]].double()
    wanted = wanted - (ends - sums).gather(1, block)
    token = torch.searchsorted(inside.cumsum(1), wanted, right=True).clamp(max=_last(inside))
    return (block * BLOCK + token)[:, 0]


def _last(p: Tensor) -> Tensor:
    """The last place of each row that is above 0 [B, 1]: where rounding would step over the end."""
    return ((p > 0) * torch.arange(p.shape[1], device=p.device)).amax(1, keepdim=True)
