"""LoRA's linear layer with its backward pass by hand: the same numbers, fewer passes over memory.

    y = x W0^T + (alpha/r) (x A^T) B^T              u = x A^T                      x [T, k], W0 [d, k], A [r, k]
    dx = g W0 + v A       dA = v^T x       dB = (alpha/r) g^T u       v = (alpha/r) g B        B [d, r], g = dL/dy

PEFT turns x into float32 for A and B when W0 is bfloat16: with r = 8 that is 2 % of the arithmetic and a third of the
time of a step. Here A and B are rounded to W0's type as autocast would do it, their float32 originals stay what the
optimiser sees, and x itself is all that is kept for the backward pass. In float32 the two differ by rounding alone.

`fuse(model)` replaces the `forward` of those of PEFT's layers that this formula describes (plain LoRA or rsLoRA on a
frozen nn.Linear, no dropout; one adapter active of any number). All others, and every call with the adapter off, merged
or mixed, go PEFT's own way.
Modules, parameters, names and what is saved stay PEFT's. Test: tests/learning/test_fused.py.
"""

from types import MethodType

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def fuse(model: nn.Module) -> int:
    """Give each LoRA layer of a PEFT model that the formula describes the forward pass above; returns their number."""
    from peft.tuners.lora import Linear  # takes seconds

    layers = [module for module in model.modules() if type(module) is Linear and _described(module)]
    for layer in layers:
        layer.forward = MethodType(_forward, layer)
    return len(layers)


def unfuse(model: nn.Module) -> None:
    """PEFT's own forward again for every layer."""
    for module in model.modules():
        own = vars(module).get("forward")
        if isinstance(own, MethodType) and own.__func__ is _forward:
            del module.forward


def _described(layer: nn.Module) -> bool:
    """Is this y = x W0^T + b + scale (x A^T) B^T with each of its adapters, and nothing else to it?"""
    if layer.lora_variant or layer.fan_in_fan_out or any(B.bias is not None for B in layer.lora_B.values()):
        return False
    plain = type(layer.base_layer) is nn.Linear and not layer.base_layer.weight.requires_grad
    return plain and all(getattr(dropout, "p", 0.0) == 0.0 for dropout in layer.lora_dropout.values())


def _forward(layer: nn.Module, x: Tensor, *args, **kwargs) -> Tensor:
    W = layer.base_layer.weight
    ours = not (args or kwargs or layer.disable_adapters or layer.merged) and x.dtype == W.dtype
    if not ours or not _described(layer) or torch.is_autocast_enabled(x.device.type):
        return type(layer).forward(layer, x, *args, **kwargs)
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(names) != 1:
        return type(layer).forward(layer, x)
    (name,) = names
    A, B = layer.lora_A[name].weight, layer.lora_B[name].weight
    y = _LoraLinear.apply(x, W, layer.base_layer.bias, A, B, layer.scaling[name])
    return y.view(*x.shape[:-1], -1)  # a view made inside could not be changed in place, as OLMo does


class _LoraLinear(torch.autograd.Function):
    """The formulas at the top, in W0's type."""

    @staticmethod
    def forward(ctx, x: Tensor, W: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        a, b = A.to(x.dtype), (B * scale).to(x.dtype)
        u = rows @ a.t()
        y = F.linear(rows, W, bias).addmm_(u, b.t())
        ctx.save_for_backward(x, W, A, B, u)
        ctx.scale = scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, W, A, B, u = ctx.saved_tensors
        g, rows = upstream, x.reshape(-1, x.shape[-1])
        v = g @ (B * ctx.scale).to(g.dtype)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (g @ W).addmm_(v, A.to(g.dtype)).view_as(x)
        dA = (v.t() @ rows).to(A.dtype)
        dB = (u.t() @ g).t().to(B.dtype).mul_(ctx.scale)  # u^T g runs twice as fast as g^T u
        return dx, None, None, dA, dB, None
