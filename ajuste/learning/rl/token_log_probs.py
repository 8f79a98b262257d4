"""log p(y) and the entropy of p, from hidden states, with N x V numbers kept once.

    z = s (h W^T + b)    then z = c tanh(z / c)                                                     h [N, d], W [V, d]
    log p(y) = z_y/T - log sum_v exp z_v/T             H = -sum_v p_v log p_v
    dL/dz = g (one-hot(y) - p) / T                     dL/dh = s (dL/dz * (1 - tanh^2)) W           g = dL/dlog p(y) [N]

Most decoders have W alone; some have a bias b, a scale s or a soft cap c (`Head`). The temperature T divides the logits
of the policy, of the reference and of the rollout alike, so that ratios and KL are those of the distribution that was
sampled. Products are computed in h's dtype and turned into float32 a few rows at a time; where a gradient is wanted, p
stays in their place, in their dtype. The head is frozen; the entropy has no gradient.

    log_probs, entropy = token_log_probs(hidden, Head(lm_head.weight), targets, temperature)
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 64  # rows turned into float32 at once: 64 x 49152 x 4 bytes are 12 MB


class Head(NamedTuple):
    """weight W [V, d], bias b [V], scale s, soft cap c: what turns hidden states into logits."""

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    def logits(self, h: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """h [n, d] -> z [n, V] in `kind`, and dz/d(h W^T) [n, V] where it is not 1."""
        z = (h @ self.weight.t()).to(kind)
        if self.bias is not None:
            z += self.bias
        if self.scale != 1.0:
            z *= self.scale
        if self.cap is None:
            return z, None if self.scale == 1.0 else z.new_full((), self.scale)
        z = torch.tanh_(z / self.cap)
        return z * self.cap, (1 - z * z) * self.scale


def token_log_probs(h: Tensor, head: Head, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """h [N, d], targets [N] int64 -> log p(targets) and the entropy in nats, float32 [N].

    Raises ValueError for a temperature that is not above 0.
    """
    _check(temperature)
    return _TokenLogProbs.apply(h, head, targets, float(temperature))


def log_probs_of_logits(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The same from the logits [N, V] themselves, where no `Head` describes how a model makes them."""
    _check(temperature)
    log_p = (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(1)
    with torch.no_grad():
        entropy = -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(1)
    return log_p.gather(1, targets[:, None])[:, 0], entropy


def _check(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"the temperature of log-probabilities must be above 0, not {temperature}")


class _TokenLogProbs(torch.autograd.Function):
    """The formulas at the top."""

    @staticmethod
    def forward(ctx, h: Tensor, head: Head, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        kind = torch.promote_types(h.dtype, torch.float32)
        log_p, entropy = h.new_empty(2, len(h), dtype=kind).unbind(0)
        keep = ctx.needs_input_grad[0]
        kept = h.new_empty(len(h) if keep else 0, len(head.weight))
        slopes = []
        for start in range(0, len(h), CHUNK):
            some = slice(start, start + CHUNK)
            z, slope = head.logits(h[some], kind)
            z.div_(temperature)
            z -= z.logsumexp(1, keepdim=True)
            log_p[some] = z.gather(1, targets[some, None])[:, 0]
            p = z.exp()
            entropy[some] = -(p * z.clamp_(min=torch.finfo(kind).min)).sum(1)
            if keep:
                kept[some] = p if slope is None else p * slope
                if slope is not None:
                    slopes.append(slope.expand_as(p).gather(1, targets[some, None]))
        ctx.save_for_backward(kept, head.weight, targets, *slopes)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy)
        return log_p, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        p, W, targets, *slopes = ctx.saved_tensors  # p and the ones of one-hot are times the slopes, if there are any
        g = (g / ctx.temperature).to(p.dtype)[:, None]
        ones = g * torch.cat(slopes).to(p.dtype) if slopes else g
        dh = torch.empty(len(p), W.shape[1], dtype=p.dtype, device=p.device)
        for start in range(0, len(p), CHUNK):
            some = slice(start, start + CHUNK)
            dz = (p[some] * -g[some]).scatter_add_(1, targets[some, None], ones[some])
            dh[some] = dz @ W
        return dh, None, None, None
