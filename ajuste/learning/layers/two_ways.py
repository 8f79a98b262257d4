"""Before a part of transformers' forward is replaced: do both ways say the same of two short rows?

    row 1     p p p p a a a a a a a a a        both begin alike and are of unequal length
    row 2     p p p p b b b b b
    truth     each row alone through the model's own forward: no padding, no mask, no cache
    found     both rows at once, as our form of batches has them
    agree     |found - truth| <= tolerance |truth|      norms over all tokens, of log-probabilities, gradients, ...

"Everything but attention works on single tokens" holds for most decoders and is silently wrong for state-space layers,
convolutions and linear attention; a soft cap, sinks, or a scale of the logits may be lost as silently. So each stage
asks first. What it asks is a copy of the model in float32 and evaluation mode, with its first layers alone, as many as
show every kind of layer that it has: weights, gradients, dropout and random numbers of the model itself stay as they
are, rounding hides nothing, and it costs a fraction of a second. In the copy, trained matrices that start at zero (B of
LoRA) are not zero. A quantised model is copied in its own arithmetic and compared with a wider tolerance.

    chosen = choose(model, truth, {"exact": ragged_rows, "plain": padded_rows})     # ajuste/models/probe/
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

LENGTHS, SHARED = (13, 9), 4  # tokens of the two rows, and of their common beginning
LAYERS = 2  # at least, of the copy
# Of values and of gradients. Float32: equal ways differed by at most 1e-6 and 3e-6 over 48 architectures and SmolLM2,
# wrong ones by 5e-4 and more. Quantised beside bfloat16: by 0.004 and 0.04 on SmolLM2, wrong ones by 0.03 and 0.13.
TOLERANCES = {"float32": (1e-4, 1e-3), "quantised": (0.02, 0.12)}

Seen = dict[str, Tensor]  # what a way says of the rows, by name; names of gradients begin with GRADIENT
GRADIENT = "gradient of "
Way = Callable[[nn.Module], Seen]


class Chosen(NamedTuple):
    """name: of the way that agrees, None if none does; reasons: why each one before it does not."""

    name: str | None
    reasons: dict[str, str]

    @property
    def reason(self) -> str:
        """Why not the first way; empty if it agrees."""
        return next(iter(self.reasons.values()), "")


def choose(module: nn.Module, truth: Way, ways: dict[str, Way]) -> Chosen:
    """The first of `ways` that agrees with `truth` on a copy of `module`, which itself is not touched.

    A way changes the copy as it needs, also from what another way made of it; one that raises does not agree. Raises
    ValueError when the model's own forward fails, or gives what is no number.
    """
    small, exact = shallow(module)
    try:
        expected = truth(small)
    except Exception as error:
        raise ValueError(f"its own forward fails on two short rows ({_said(error)})") from error
    if not all(bool(value.isfinite().all()) for value in expected.values()):
        raise ValueError("what it says of two short rows is not finite: its weights are damaged")
    reasons = {}
    for name, way in ways.items():
        try:
            wrong = difference(way(small), expected, *TOLERANCES["float32" if exact else "quantised"])
        except Exception as error:  # whatever a replaced forward meets in an architecture that it was not made for
            wrong = _said(error)
        if not wrong:
            return Chosen(name, reasons)
        reasons[name] = wrong
    return Chosen(None, reasons)


def difference(found: Seen, expected: Seen, tolerance: float, of_gradients: float) -> str:
    """What differs most among the things that differ too much, in words; empty if all agree."""
    worst, words = 0.0, ""
    for name, wanted in expected.items():
        limit = of_gradients if name.startswith(GRADIENT) else tolerance
        if found[name].shape != wanted.shape:
            return f"{name}: shape {list(found[name].shape)} in place of {list(wanted.shape)}"
        size = wanted.float().norm().item()
        share = (found[name].float() - wanted.float()).norm().item() / (size or 1.0)
        if not share <= limit and not share / limit <= worst:
            worst, words = share / limit, f"{name} would be {share:.1%} off"
    return words


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}" if not isinstance(error, ValueError) else lines[0][:200]


# --- the copy ---------------------------------------------------------------------------------------------------------


def shallow(module: nn.Module) -> tuple[nn.Module, bool]:
    """(copy, is it in float32?): see the top. `module`: a model of transformers, or a module that holds one."""
    layers = _layers(module)
    kept = len(layers)
    if layers:
        kinds = [_kind(layer) for layer in layers]
        kept = max(max(kinds.index(kind) for kind in kinds) + 1, min(LAYERS, kept))
    memo = {id(layer): nn.Identity() for layer in layers[kept:]}
    small = copy.deepcopy(module, memo).eval()
    if kept < len(layers):
        del memo[id(layers)][kept:]
        _cut_configs(small, kept)
    exact = all(parameter.dtype.is_floating_point for parameter in small.parameters())
    if exact:
        small.float()
    _wake(small)
    return small, exact


def _layers(module: nn.Module) -> nn.ModuleList:
    """The decoder's layers; an empty list if they are not found."""
    depths = {getattr(part.config, "num_hidden_layers", None) for part in module.modules() if hasattr(part, "config")}
    found = (part for part in module.modules() if isinstance(part, nn.ModuleList) and len(part) in depths)
    return next(found, nn.ModuleList())


def _kind(layer: nn.Module) -> tuple:
    """All that tells one layer from another but its number and its weights."""
    return tuple(
        (name, type(part).__name__, tuple(sorted(
            (key, repr(value)) for key, value in vars(part).items()
            if isinstance(value, bool | int | float | str | None) and "idx" not in key and "layer_id" not in key
        )))
        for name, part in layer.named_modules()
    )  # fmt: skip


def _cut_configs(small: nn.Module, kept: int) -> None:
    """The number of layers and their kinds, which a cache is made by."""
    configs = {id(part.config): part.config for part in small.modules() if hasattr(part, "config")}.values()
    for config in configs:
        if getattr(config, "num_hidden_layers", 0) > kept:
            kinds = getattr(config, "layer_types", None)
            config.num_hidden_layers = kept
            if kinds:
                config.layer_types = list(kinds)[:kept]


@torch.no_grad()
def _wake(small: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in small.parameters():
        if parameter.requires_grad and parameter.ndim == 2 and not parameter.any():
            parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))


# --- what is asked ----------------------------------------------------------------------------------------------------


def rows(module: nn.Module) -> list[list[int]]:
    """Two rows of token ids, spread over the vocabulary, none of them a token that the configuration names."""
    configs = [part.config for part in module.modules() if hasattr(part, "config")]
    size = min(config.vocab_size for config in configs if getattr(config, "vocab_size", None))
    named = {
        token
        for config in configs
        for name, value in vars(config).items() if name.endswith(("_token_id", "_token_index"))
        for token in (value if isinstance(value, list) else [value])
    }  # fmt: skip
    usable = [token for token in range(size) if token not in named]
    wanted = SHARED + sum(length - SHARED for length in LENGTHS)
    ids = [usable[(i * 2 + 1) * len(usable) // (2 * wanted)] for i in range(wanted)]
    ids = ids[::2] + ids[1::2]  # not in the order of their numbers
    ends = SHARED + LENGTHS[0] - SHARED
    return [ids[:ends], ids[:SHARED] + ids[ends:]]


def watched(module: nn.Module, number: int = 3) -> dict[str, nn.Parameter]:
    """The first and the last weights that are trained, `number` of each at most, whose gradients are compared."""
    trained = [(name, weight) for name, weight in module.named_parameters() if weight.requires_grad]
    return dict(trained[:number] + trained[-number:])


def gradients(loss: Tensor, module: nn.Module) -> Seen:
    """Of the watched weights, by name; none where gradients are off. Nothing is left in their `.grad`."""
    weights = watched(module)
    if not (weights and torch.is_grad_enabled()):
        return {}
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return {
        f"{GRADIENT}{name}": torch.zeros_like(weight) if gradient is None else gradient
        for (name, weight), gradient in zip(weights.items(), found, strict=True)
    }
