"""Which way may a model go: our own fast forms of batches, transformers' plain padded ones, or none?

    exact      our form (rows without padding, a shared prefix, the packed sampler) says what the model itself says
    plain      it does not: padded rows through transformers' own forward, which do
    refused    neither does: ValueError

for each use, in a module of its own beside this one:

    texts      `supervised`: losses and gradients, for stage instruct; without gradients for all that scores texts
    samples    `answers`: sampling and its log-probabilities, wherever a decoder answers by chance
    policies   `policy`: log-probabilities of policy and reference, values, scores: OneBase asks when made; `one.way`
    prefixes   `rewards` of a reward model, which asks when it is built or loaded; `reward.way(model)`
               `likelihoods` of whole responses, log pi(y | x): ajuste/models/responses.py asks when it builds one

    way = supervised(model)     # Way("exact", ""), and `model` takes ragged batches; if "plain" it is as it was

Each is decided on the model itself, by two short rows that go both ways (ajuste/learning/layers/two_ways.py): no list
of architectures is kept. A plain way is said in one line (ajuste/core/notes.py) and costs time, nothing else. Here
stands what the uses share.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ajuste.core.notes import say
from ajuste.learning.layers import fused, ragged, two_ways


class Way(NamedTuple):
    """reason: why it is not exact."""

    name: Literal["exact", "plain"]
    reason: str = ""


def told(model: nn.Module, chosen: two_ways.Chosen, use: str, plain: str) -> Way:
    """The way that was chosen, said in one line if it is not the first.

    use: what the model is for; plain: what is done then. Raises ValueError, which says why, if there is no way.
    """
    kind = _kind(model)
    if chosen.name is None:
        reasons = "; ".join(f"{name}: {why}" for name, why in chosen.reasons.items())
        raise ValueError(f"{kind} cannot be used for {use}, no way of it is right ({reasons}): take another base")
    if not chosen.reasons:
        return Way("exact")
    say(f"{kind}: {plain}, which is slower, because {chosen.reason}")
    return Way("plain", chosen.reason)


def _kind(model: nn.Module) -> str:
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return type(model).__name__


def own_logits(model: nn.Module, row: list[int]) -> Tensor:
    """The model's own [T, V] of one row, as transformers' documentation would have it."""
    ids = torch.tensor([row], device=next(model.parameters()).device)
    mask = {"attention_mask": torch.ones_like(ids)} if ragged.puts_tokens_before(model) else {}
    return model(input_ids=ids, use_cache=False, **mask).logits[0, -len(row) :]


def fuse(model: nn.Module, wanted: bool) -> nn.Module:
    (fused.fuse if wanted else fused.unfuse)(model)
    return model


def log_p(logits: Tensor, targets: Tensor) -> Tensor:
    """logits [N, V], targets [N] -> log p [N], float32."""
    return logits.float().log_softmax(-1).gather(1, targets.to(logits.device)[:, None])[:, 0]
