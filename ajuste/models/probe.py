"""Which way may a model go: our own fast forms of batches, transformers' plain padded ones, or none?

    exact      our form (rows without padding, a shared prefix, the packed sampler) says what the model itself says
    plain      it does not: padded rows through transformers' own forward, which do
    refused    neither does

for each use:

    supervised   losses and gradients: stages instruct, evaluate_instruct, forgetting and all that score texts
    answers      sampling and its log-probabilities: reward, ppo, evaluate_ppo
    reward       ajuste/models/reward.py asks for itself, OneBase (log-probabilities of policy and reference, values,
                 scores) too: `reward.way(model)`, `one.way`

    way = supervised(model)          # Way("exact", ""), and `model` takes ragged batches; it is as it was if "plain"

Each is decided on the model itself, by two short rows that go both ways (ajuste/learning/layers/probe.py): no list of
architectures is kept. A plain way is said in one line (ajuste/core/notes.py), a refusal raises ValueError.
"""

from typing import Literal, NamedTuple

from torch import nn

from ajuste.core.notes import say
from ajuste.learning.layers import probe


class Way(NamedTuple):
    """reason: why it is not exact."""

    name: Literal["exact", "plain"]
    reason: str = ""


def told(model: nn.Module, chosen: probe.Chosen, use: str, plain: str) -> Way:
    """The way that was chosen (`exact` or a name that begins with `plain`), said if it is plain.

    use and plain: the words for what the model does and how. Raises ValueError, which says why, if there is none.
    """
    kind = _kind(model)
    if chosen.name is None:
        reasons = "; ".join(f"{name}: {why}" for name, why in chosen.reasons.items())
        raise ValueError(f"{kind} cannot be used for {use}, no way of it is right ({reasons}): take another base")
    if chosen.name == "exact":
        return Way("exact")
    say(f"{use} of {kind}: {plain}, because otherwise: {chosen.reason}")
    return Way("plain", chosen.reason)


def supervised(model: nn.Module, fuse: bool = False) -> Way:
    """Let a causal language model, in PEFT or not, take ragged batches if they are exact; else it stays as it is.

    fuse: also LoRA's layers (ajuste/learning/layers/fused.py). Raises ValueError if padded rows are wrong too.
    """
    raise NotImplementedError


def _kind(model: nn.Module) -> str:
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return type(model).__name__
