"""The losses of PPO (Schulman et al. 2017) for language models, and their metrics. Tensors only.

    ratio_t = exp(log pi(y_t) - log pi_old(y_t))                  pi_old: the policy that sampled, fixed for all epochs
    L_policy = sum_t max(-A_t ratio_t, -A_t clip(ratio_t, 1-c, 1+c)) / N
               dual clip d > 1: for A_t < 0 at most -d A_t (Ye et al. 2020)
               truncated importance weights: each term times w_t = min(pi_old(y_t) / pi_sampler(y_t), cap), a constant,
               where another arithmetic has sampled than learns (Yao et al. 2025, "off-policy RL")
    L_value  = 1/2 sum_t max((V_t - R_t)^2, (clip(V_t, V_old - c_v, V_old + c_v) - R_t)^2) / N_v
    L = L_policy + c_value L_value  (+ c_ptx L_ptx, the cross-entropy on other text of InstructGPT: the loop adds it)

N counts the response tokens of the *whole minibatch*, over all its micro-batches and processes, and is given by the
caller: the losses of micro-batches add up, and so do their gradients, 1x8 == 2x4 == 8x1. (A mean over each micro-batch,
as in TRL 1.12, weighs the tokens of a batch with short responses more.)

Log-probabilities come at the rollout's temperature: the same division of the logits as in the sampling.
Metrics are sums over tokens divided by the same N, so they add up too; only `ratio_max` is a maximum.
"""

import torch
from torch import Tensor

# --- losses -----------------------------------------------------------------------------------------------------------


def policy_loss(
    log_probs: Tensor,
    old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float,
    items: Tensor | float,
    dual_clip: float | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Clipped surrogate over the masked tokens, divided by `items`: a scalar. All tensors [B, R], mask bool.

    weights: of `importance_weights`; None is 1 for each token.
    """
    loss, _ = _surrogate(_ratio(log_probs, old, mask), advantages, clip, dual_clip)
    if weights is not None:
        loss = loss * weights
    return (loss * mask).sum() / items


def importance_weights(old: Tensor, sampler: Tensor, mask: Tensor, cap: float) -> Tensor:
    """min(exp(old - sampler), cap) of each token, 0 where the mask is False, without gradient. All [B, R], mask bool.

    old: log-probs of the policy that sampled, by the trainer's arithmetic; sampler: those it drew by.
    """
    return torch.where(mask, _ratio(old, sampler, mask).clamp(max=cap), 0.0).detach()


def value_loss(
    values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, clip: float | None, items: Tensor | float
) -> Tensor:
    """Half the squared error, the larger of plain and clipped, divided by `items`: a scalar. All [B, T], mask bool.

    mask: Targets.value_mask. clip None: the plain error.
    """
    loss, _ = _squared(values, old, returns, clip)
    return 0.5 * torch.where(mask, loss, 0.0).sum() / items


def _ratio(log_probs: Tensor, old: Tensor, mask: Tensor) -> Tensor:
    return torch.exp(torch.where(mask, log_probs - old, 0.0))


def _surrogate(ratio: Tensor, advantages: Tensor, clip: float, dual_clip: float | None) -> tuple[Tensor, Tensor]:
    """The loss of each token, and where the clip decides it."""
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    loss = torch.maximum(plain, clipped)
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)
    return loss, clipped > plain


def _squared(values: Tensor, old: Tensor, returns: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """The squared error of each position, and where the clip decides it."""
    plain = (values - returns) ** 2
    if clip is None:
        return plain, torch.zeros_like(plain, dtype=torch.bool)
    clipped = (torch.clamp(values, old - clip, old + clip) - returns) ** 2
    return torch.maximum(plain, clipped), clipped > plain


# --- metrics ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def policy_metrics(
    log_probs: Tensor, old: Tensor, entropy: Tensor, advantages: Tensor, mask: Tensor, clip: float, items: float
) -> dict[str, float]:
    """Of one micro-batch: add up over the minibatch's, but `ratio_max`, which is a maximum. All [B, R], mask bool.

    approx_kl: mean of (lp - old)^2 / 2 (k2, as lm-human-preferences and TRL); clip_fraction: tokens whose loss the
    clip decides; entropy: mean over response tokens. Padding changes none of them.
    """
    ratio = _ratio(log_probs, old, mask)
    _, clipped = _surrogate(ratio, advantages, clip, None)
    difference = torch.where(mask, log_probs - old, 0.0)
    return {
        "approx_kl": float((difference**2 / 2).sum() / items),
        "clip_fraction": float((clipped & mask).sum() / items),
        "entropy": float(torch.where(mask, entropy, 0.0).sum() / items),
        "ratio_mean": float((ratio * mask).sum() / items),
        "ratio_max": float((ratio * mask).max()),
    }


@torch.no_grad()
def value_metrics(
    values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, clip: float | None, items: float
) -> dict[str, float]:
    """Of one micro-batch, to add up: mean value, and the share of positions whose loss the clip decides."""
    _, clipped = _squared(values, old, returns, clip)
    return {
        "value_mean": float(torch.where(mask, values, 0.0).sum() / items),
        "value_clip_fraction": float((clipped & mask).sum() / items),
    }
