"""A model that is kept in the dtype of its file and computes in float32: its memory is that of the file.

    float32(model)       each layer's weights are raised while the layer is at work, and are what they were after it

The numbers are those of the model loaded in float32, to the bit: bfloat16 and float16 go into float32 exactly, and
what a layer gets and gives is float32. It costs the raising, at every pass. A model with weights that not their own
layer alone reads (fused experts, DoRA's lengths) is raised as a whole instead.
"""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

LAYERS = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, Conv1D)


def float32(model: nn.Module) -> nn.Module:
    """Let the model compute in float32, in place; returns it. Nothing to do where all is float32."""
    lower = [module for module in model.modules() if _lower(module)]
    if any(not _alone(module) for module in lower) or (lower and _reads_others(model)):
        return model.float()
    for module in lower:
        module.register_forward_pre_hook(_raise)
        module.register_forward_hook(_lay_down)
    return model


def _lower(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False)) + list(module.buffers(recurse=False))
    return any(x.is_floating_point() and x.dtype != torch.float32 for x in own)


def _alone(module: nn.Module) -> bool:
    """Whether a layer's weights are read by its own forward and by nothing else."""
    kind = isinstance(module, LAYERS) or type(module).__name__.endswith("RMSNorm")
    return kind and not list(module.children()) and not any(True for _ in module.buffers(recurse=False))


def _reads_others(model: nn.Module) -> bool:
    """DoRA's layers take the norm of their base's matrix."""
    return any(len(getattr(module, "lora_magnitude_vector", ())) > 0 for module in model.modules())


def _raise(module: nn.Module, args: tuple) -> None:
    module.laid_down = dict(module._parameters)
    for name, weight in module.laid_down.items():
        module._parameters[name] = None if weight is None else weight.detach().float()


def _lay_down(module: nn.Module, args: tuple, output: object) -> None:
    module._parameters.update(module.laid_down)
    del module.laid_down
