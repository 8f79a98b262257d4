"""Learning from groups: several responses to one prompt judge each other, so no value model is needed. Tensors only.

    r_1 .. r_G     rewards of the G responses to a prompt
    GRPO           A_i = (r_i - mean r) / (std r + 1e-4)         std with G - 1 below (DeepSeekMath, Shao et al. 2024)
    Dr. GRPO       A_i =  r_i - mean r                           scale: none (Liu et al. 2025)
    RLOO           A_i =  r_i - mean of the others = G/(G-1) (r_i - mean r)         (Ahmadian et al. 2024)

A group whose rewards are all equal says nothing: its advantages are 0, exactly.

    ratio       token: pi(y_t)/pi_old(y_t) (GRPO)         sequence: pi(y)/pi_old(y), one for all tokens (RLOO)
    loss_t      max(-A ratio, -A clip(ratio, 1 - low, 1 + high))        high > low: clip-higher (DAPO, Yu et al. 2025)
                + beta k3_t, where KL is paid in the loss               k3: ajuste/learning/rl/kl.py
    L           sequence    mean over responses of the mean over their tokens (GRPO)
                token       sum over all tokens / their number (DAPO)
                constant    sum over all tokens / (responses x the longest length allowed) (Dr. GRPO): no response's
                            length weighs its tokens, whatever the others' lengths

Responses and tokens are those of the *whole minibatch*, given by the caller, so losses of micro-batches add up, and
so do their gradients. With a sequence ratio each response is one term, and L their mean: RLOO's REINFORCE at ratio 1.

At ratio 1 the surrogate is -A, and the advantages of a group sum to 0: of responses of one length the loss *is* 0 in
the first step of an update, while its gradient -A grad log pi is not. Watch `grad_norm` and `flat_groups` instead.
"""

from typing import Literal

import torch
from torch import Tensor

from ajuste.learning.rl import kl

EPS = 1e-4  # beside the standard deviation, as TRL

Scale = Literal["std", "none"]
Level = Literal["token", "sequence"]
Mean = Literal["sequence", "token", "constant"]


# --- advantages -------------------------------------------------------------------------------------------------------


def group_advantages(rewards: Tensor, group: int, scale: Scale) -> Tensor:
    """GRPO's [N], float32, and with scale `none` Dr. GRPO's. rewards [N]: rows i * group to (i + 1) * group are one.

    Raises ValueError for a group of one, and for rewards that are no whole groups.
    """
    groups = _groups(rewards, group)
    centred = groups - groups.mean(1, keepdim=True)
    if scale == "std":
        centred = centred / (groups.std(1, keepdim=True) + EPS)
    return _known(centred, groups)


def leave_one_out(rewards: Tensor, group: int) -> Tensor:
    """RLOO's [N], float32: each reward less the mean of the others of its group. Raises ValueError as above."""
    groups = _groups(rewards, group)
    return _known(groups - (groups.sum(1, keepdim=True) - groups) / (group - 1), groups)


def flat(rewards: Tensor, group: int) -> Tensor:
    """[N] bool: rows of groups without variance, which teach nothing."""
    groups = _groups(rewards, group)
    return _equal(groups).expand_as(groups).flatten()


def _groups(rewards: Tensor, group: int) -> Tensor:
    """[N / group, group], float64: so that sums of equal numbers and of large ones are as good as exact."""
    if group < 2:
        raise ValueError(f"a group of {group} has nobody to be compared with")
    return rewards.double().view(-1, group)


def _equal(groups: Tensor) -> Tensor:
    return groups.amax(1, keepdim=True) == groups.amin(1, keepdim=True)


def _known(advantages: Tensor, groups: Tensor) -> Tensor:
    return torch.where(_equal(groups), 0.0, advantages).flatten().float()


# --- losses -----------------------------------------------------------------------------------------------------------


def log_ratio(log_probs: Tensor, old: Tensor, mask: Tensor, level: Level) -> Tensor:
    """log pi/pi_old of each token, or of its whole response at each of its tokens. All [B, R], mask bool."""
    difference = torch.where(mask, log_probs - old, 0.0)
    return difference if level == "token" else difference.sum(1, keepdim=True) * mask


def token_losses(ratio: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """The clipped surrogate, and where the clip decides it: each [B, R]. advantages: [B, R]."""
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - low, 1 + high)
    return torch.maximum(plain, clipped), clipped > plain


def policy_loss(
    log_probs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, low: float, high: float, level: Level
) -> Tensor:
    """The surrogate of each token [B, R], 0 where the mask is False. All [B, R], mask bool."""
    ratio = log_ratio(log_probs, old, mask, level).exp()
    return torch.where(mask, token_losses(ratio, advantages, low, high)[0], 0.0)


def kl_loss(log_probs: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """k3 of each token [B, R], with gradients: the KL that is paid in the loss."""
    return kl.token_kl(log_probs, reference, mask, "k3")


def mean_of(losses: Tensor, mask: Tensor, mean: Mean, rows: float, tokens: float, longest: int) -> Tensor:
    """This micro-batch's share of the minibatch's loss, a scalar. losses [B, R], 0 where the mask is False.

    rows, tokens: of the whole minibatch. longest: the most tokens that a response may have.
    """
    if mean == "sequence":
        return (losses.sum(1) / mask.sum(1).clamp(min=1)).sum() / rows
    return losses.sum() / (tokens if mean == "token" else rows * longest)


# --- metrics ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def metrics(
    log_probs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, low: float, high: float, level: Level,
    items: float,
) -> dict[str, float]:  # fmt: skip
    """Of one micro-batch: add up over the minibatch's, but `ratio_max`, which is a maximum. All [B, R], mask bool.

    approx_kl: mean of (lp - old)^2 / 2 over tokens; clip_fraction: share of tokens whose loss the clip decides.
    """
    difference = torch.where(mask, log_probs - old, 0.0)
    ratio = log_ratio(log_probs, old, mask, level).exp()
    clipped = token_losses(ratio, advantages, low, high)[1] & mask
    return {
        "approx_kl": float((difference**2 / 2).sum() / items),
        "clip_fraction": float(clipped.sum() / items),
        "ratio_mean": float((ratio * mask).sum() / items),
        "ratio_max": float((ratio * mask).max()),
    }
