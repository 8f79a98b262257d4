"""The layers of a transformers model that training looks at: which are linear, what is trained, dropout."""

from collections.abc import Sequence

from torch import nn
from transformers.pytorch_utils import Conv1D


def set_dropout(model: nn.Module, p: float) -> nn.Module:
    """The model with dropout probability `p` in all its layers, attention included; its config stays as it is."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
    return model


def linear_modules(model: nn.Module, names: Sequence[str], outside: Sequence[str]) -> list[str]:
    """Full names of the linear layers that LoRA adapts: those whose last name is in `names`, or all for "all-linear".

    Layers inside a module named in `outside` (the head, which is trained whole) and frozen ones are left out.
    Raises ValueError if nothing matches.
    """
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module.weight.requires_grad
    ]
    inside = [name for name in linear if not any(f".{part}." in f".{name}." for part in outside)]
    chosen = [name for name in inside if list(names) == ["all-linear"] or name.rsplit(".", 1)[-1] in names]
    if not chosen:
        known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in inside}))
        raise ValueError(f"no linear layer of the base is named {', '.join(names)}: it has {known}")
    return chosen


def count_parameters(model: nn.Module) -> dict:
    """{"total", "trainable", "share"} of a model with or without adapter; PEFT's copy of the old head not counted."""
    named = [(name, p) for name, p in model.named_parameters() if ".original_module." not in name]
    total = sum(p.numel() for _, p in named)
    trainable = sum(p.numel() for _, p in named if p.requires_grad)
    return {"total": total, "trainable": trainable, "share": trainable / total}
