"""log p(y) and the entropy of p, from hidden states, with N x V numbers kept once.

    z = h W^T / T        log p(y) = z_y - log sum_v exp z_v        H = -sum_v p_v log p_v           h [N, d], W [V, d]
    dL/dz = g (one-hot(y) - p)        dL/dh = dL/dz W / T          g = dL/dlog p(y) [N]

The temperature T divides the logits of the policy, of the reference and of the rollout alike, so that ratios and KL
are those of the distribution that was sampled. Logits are computed in h's dtype and turned into float32 a few rows at
a time; where a gradient is wanted, p stays in their place, in their dtype. W is frozen; the entropy has no gradient.

    log_probs, entropy = token_log_probs(hidden, head.weight, targets, temperature)
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 64  # rows turned into float32 at once: 64 x 49152 x 4 bytes are 12 MB


def token_log_probs(h: Tensor, W: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """h [N, d], W [V, d], targets [N] int64 -> log p(targets) and the entropy in nats, float32 [N].

    Raises ValueError for a temperature that is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"the temperature of log-probabilities must be above 0, not {temperature}")
    return _TokenLogProbs.apply(h, W, targets, float(temperature))


class _TokenLogProbs(torch.autograd.Function):
    """The formulas at the top."""

    @staticmethod
    def forward(ctx, h: Tensor, W: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        kind = torch.promote_types(h.dtype, torch.float32)
        log_p, entropy = h.new_empty(2, len(h), dtype=kind).unbind(0)
        keep = ctx.needs_input_grad[0]
        kept = h.new_empty(len(h) if keep else 0, len(W))
        for start in range(0, len(h), CHUNK):
            some = slice(start, start + CHUNK)
            z = (h[some] @ W.t()).to(kind).div_(temperature)
            z -= z.logsumexp(1, keepdim=True)
            log_p[some] = z.gather(1, targets[some, None])[:, 0]
            p = z.exp()
            entropy[some] = -(p * z.clamp_(min=torch.finfo(kind).min)).sum(1)
            if keep:
                kept[some] = p
        ctx.save_for_backward(kept, W, targets)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy)
        return log_p, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        p, W, targets = ctx.saved_tensors
        g = (g / ctx.temperature).to(p.dtype)[:, None]
        dh = torch.empty(len(p), W.shape[1], dtype=p.dtype, device=p.device)
        for start in range(0, len(p), CHUNK):
            some = slice(start, start + CHUNK)
            dz = (p[some] * -g[some]).scatter_add_(1, targets[some, None], g[some])
            dh[some] = dz @ W
        return dh, None, None, None
