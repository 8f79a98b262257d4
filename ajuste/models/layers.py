"""The layers of a transformers model that training looks at: which are linear, what is trained, dropout."""

from collections.abc import Sequence
from types import MethodType

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ajuste.models.experts import ALL, last, unadaptable

CHECKED = 16  # tokens of the row that two passes must agree on
NOISE = 1e-2  # relative; kernels that add in any order differ by less, dropout by more

def set_dropout(model: nn.Module, p: float) -> nn.Module:
    """The model with dropout probability `p` in all its layers, attention included; its config stays as it is.

    Many architectures keep the probability as a number of a layer and call the function (OPT, and the attention of
    most). What drops whole layers or paths is switched off with p = 0 and else left as it is.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = p
        for name, value in list(vars(module).items()):
            chance = "dropout" in name or "pdrop" in name or ("drop" in name and p == 0)
            if chance and isinstance(value, float):
                setattr(module, name, p)
    return model


def without_noise(model: nn.Module) -> nn.Module:
    """The model without anything random in training mode, so that it computes there what it computes in evaluation.

    Dropout is switched off; a router of experts that draws or shakes its choice (Phi-MoE) stays in evaluation mode.
    Two passes over one row must be equal then, and equal to evaluation. Raises ValueError when they are not.
    """
    set_dropout(model, 0.0)
    for module in model.modules():
        if any("jitter" in name and isinstance(value, float) for name, value in vars(module).items()):
            module.eval()
            module.train = MethodType(_stays, module)
    device = next(model.parameters()).device
    top = model.config.get_text_config().vocab_size
    row = torch.arange(CHECKED, device=device)[None] * 7 % top
    training = model.training
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        passes = [model.train(mode)(input_ids=row, use_cache=False)[0].float() for mode in (True, True, False)]
    model.train(training)
    if any((passes[0] - other).abs().max() > NOISE * passes[0].abs().max() for other in passes[1:]):
        raise ValueError(
            f"{type(model).__name__} draws random numbers in training that cannot be switched off: two passes over the "
            "same row differ; choose another base"
        )
    return model


def _stays(module: nn.Module, mode: bool = True) -> nn.Module:
    """In the place of `train`: nothing changes."""
    return module


def linear_modules(model: nn.Module, names: Sequence[str], outside: Sequence[str]) -> list[str]:
    """Full names of the linear layers that LoRA adapts: those whose last name is in `names`, or all for "all-linear".

    Layers inside a module named in `outside` (the head, which is trained whole), frozen ones and those of
    `experts.unadaptable` are left out. Raises ValueError if nothing matches, and for such a name, with the reason.
    """
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module.weight.requires_grad
    ]
    inside = [name for name in linear if not any(f".{part}." in f".{name}." for part in outside)]
    never, every = unadaptable(model), tuple(names) == ALL
    for name in () if every else never.keys() & set(names):
        raise ValueError(f"layer {name} of the base cannot be adapted: {never[name]}")
    chosen = [name for name in inside if (last(name) not in never if every else last(name) in names)]
    if not chosen:
        known = ", ".join(sorted({last(name) for name in inside} - never.keys()))
        raise ValueError(f"no linear layer of the base is named {', '.join(names)}: it has {known}")
    return chosen


def count_parameters(model: nn.Module) -> dict:
    """{"total", "trainable", "share"} of a model with or without adapter; PEFT's copy of the old head not counted."""
    named = [(name, p) for name, p in model.named_parameters() if ".original_module." not in name]
    total = sum(p.numel() for _, p in named)
    trainable = sum(p.numel() for _, p in named if p.requires_grad)
    return {"total": total, "trainable": trainable, "share": trainable / total}
