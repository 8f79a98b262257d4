"""From scores and per-token KL to advantages: what PPO teaches each token of a response.

    r_t = -beta kl_t  (+ score, once, where the episode ends)
    delta_t = r_t + gamma V_{t+1} - V_t             A_t = sum_l (gamma lambda)^l delta_{t+l}     (GAE, Schulman 2016)
    R_t = A_t + V_t                                 the value function learns R, made of advantages *before* whitening
    A <- (A - mean) / sqrt(var + 1e-8)              over every response token of the whole batch, of all processes

Shapes: B rows, R response tokens; a row has L <= R of them, the end token included. Everything that knows the state
after the last token has R + 1 columns: values[:, t] = V of the state before token t, so column L is V after the end.
A masked position gives and takes nothing, wherever it stands: with a hole in the middle of a row (a turn that is not
the policy's) the next token follows directly, one gamma and one lambda for each trained token.

    terminal   at_end     the score joins the reward of the last token, and V after the end is 0 (lm-human-preferences)
               after_end  the score is the reward of one more step, whose value column L is kept and learnt (N+, TRL)
               With gamma = lambda = 1 both give the same advantages; else the end token's differ by
               (1 - gamma lambda) score - gamma (1 - lambda) V_L.
    missing    subtract   score - penalty for a response cut off before its end (TRL)
               replace    -penalty in the place of its score (lm-human-preferences, N+)
               none       its score, like any other
               bootstrap  no score: the episode is taken as going on, worth gamma V after its last token
               Whatever it is paid, a response without its end is paid it at its last token.

Differs from TRL 1.12 under `after_end`: there a row as long as the longest of its batch is paid at its last token, so
the result depends on the padding; here it does not. TRL whitens with the unbiased variance (`unbiased=True`), and
each process its own rows; lm-human-preferences and N+ with the biased one.

    targets = episode_targets(kl, scores, values, mask, ended, beta, Options(lam=0.95))
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-8  # inside the square root, as tf.rsqrt(var + 1e-8) of lm-human-preferences

Terminal = Literal["at_end", "after_end"]
Missing = Literal["subtract", "replace", "none", "bootstrap"]
Reduce = Callable[[Tensor], Tensor]  # sums a tensor over all processes; None where there is one


@dataclass(frozen=True)
class Options:
    """How an update's rewards become advantages; the defaults are ours."""

    gamma: float = 1.0
    lam: float = 0.95
    terminal: Terminal = "at_end"
    missing: Missing = "subtract"
    penalty: float = 1.0
    whiten_rewards: bool = False
    whiten_advantages: bool = True
    unbiased: bool = False


@dataclass(frozen=True)
class Targets:
    """rewards, returns, value_mask [B, R+1], column L is the step after the end; advantages [B, R], 0 off the mask."""

    rewards: Tensor
    advantages: Tensor
    returns: Tensor
    value_mask: Tensor


def episode_targets(
    kl: Tensor,
    scores: Tensor,
    values: Tensor,
    mask: Tensor,
    ended: Tensor,
    beta: float,
    options: Options,
    reduce: Reduce | None = None,
) -> Targets:
    """Rewards, advantages (whitened) and returns (of the advantages before whitening) of one rollout batch.

    kl [B, R], scores [B], values [B, R+1], mask [B, R] bool, ended [B] bool. `reduce` sums over processes, so that
    the whitening is that of the global batch.
    """
    missing = options.missing
    rewards, steps = per_token_rewards(kl, scores, mask, ended, beta, options.terminal, missing, options.penalty)
    if options.whiten_rewards:
        rewards = whiten(rewards, steps, shift_mean=False, unbiased=options.unbiased, reduce=reduce)
    after = value_after(values, mask) * ~ended if missing == "bootstrap" else None
    advantages = gae(rewards, values, steps, options.gamma, options.lam, after)
    returns = torch.where(steps, advantages + values, 0.0)
    advantages = torch.where(mask, advantages[:, :-1], 0.0)
    if options.whiten_advantages:
        advantages = whiten(advantages, mask, unbiased=options.unbiased, reduce=reduce)
    return Targets(rewards, advantages, returns, steps)


def per_token_rewards(
    kl: Tensor,
    scores: Tensor,
    mask: Tensor,
    ended: Tensor,
    beta: float,
    terminal: Terminal = "at_end",
    missing: Missing = "subtract",
    penalty: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Rewards [B, R+1], and which of those steps exist [B, R+1] bool: the mask, and the step after it if one is paid.

    kl [B, R], scores [B], mask [B, R] bool with at least one token a row, ended [B] bool.
    sum of a row's rewards = what its episode is paid - beta * sum of its kl, exactly.
    """
    paid = episode_scores(scores, ended, missing, penalty)
    rewards = F.pad(torch.where(mask, -beta * kl, 0.0), (0, 1))
    steps = F.pad(mask, (0, 1))
    last = last_token(mask)
    later = ended & (terminal == "after_end")
    index = (last + later.long())[:, None]
    steps = steps.scatter(1, index, True)
    return rewards.scatter_add(1, index, paid[:, None].to(rewards.dtype)), steps


def episode_scores(scores: Tensor, ended: Tensor, missing: Missing, penalty: float) -> Tensor:
    """What each episode is paid at its end [B], given its score [B] and whether it wrote its end token [B]."""
    without = {
        "subtract": scores - penalty,
        "replace": torch.full_like(scores, -penalty),
        "none": scores,
        "bootstrap": torch.zeros_like(scores),
    }
    return torch.where(ended, scores, without[missing])


def gae(
    rewards: Tensor, values: Tensor, steps: Tensor, gamma: float, lam: float, after: Tensor | None = None
) -> Tensor:
    """Generalised advantages [B, T], 0 where `steps` is False.

    rewards, values [B, T], steps [B, T] bool; after [B]: the value of the state behind a row's last step, None is 0.
    A position outside `steps` is jumped over: neither its reward nor its value counts, and nothing is discounted.
    """
    running = torch.zeros_like(values[:, 0])
    following = running if after is None else after
    advantages = torch.zeros_like(values)
    for t in reversed(range(values.shape[1])):
        step = steps[:, t]
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = torch.where(step, delta + gamma * lam * running, running)
        following = torch.where(step, values[:, t], following)
        advantages[:, t] = torch.where(step, running, 0.0)
    return advantages


def whiten(
    values: Tensor, mask: Tensor, shift_mean: bool = True, unbiased: bool = False, reduce: Reduce | None = None
) -> Tensor:
    """(x - mean) / sqrt(var + 1e-8) over the masked positions, 0 elsewhere; without `shift_mean` the mean stays.

    values, mask: any equal shape. The sums are taken in float64, over all processes if `reduce` is given, so that
    neither the cut into micro-batches nor the number of processes shows. One value, or equal ones, give 0.
    """
    reduce = reduce or (lambda sums: sums)
    exact = torch.where(mask, values.double(), 0.0)
    count, total = reduce(torch.stack([mask.sum().double(), exact.sum()]))
    mean = total / count.clamp(min=1)
    centred = torch.where(mask, exact - mean, 0.0)
    variance = reduce((centred**2).sum()) / (count - int(unbiased)).clamp(min=1)
    whitened = centred * torch.rsqrt(variance + EPS) + (0 if shift_mean else mean)
    return torch.where(mask, whitened, 0.0).to(values.dtype)


def last_token(mask: Tensor) -> Tensor:
    """Column of each row's last True [B] int64; 0 for a row without one. mask [B, R] bool."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    return (columns * mask).amax(dim=1)


def value_after(values: Tensor, mask: Tensor) -> Tensor:
    """V of the state after each row's last token [B]. values [B, R+1], mask [B, R] bool."""
    return values.gather(1, last_token(mask)[:, None] + 1)[:, 0]
