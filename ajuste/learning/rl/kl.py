"""How far a policy has moved from its reference, and the price beta that holds it there.

With lp = log pi(y_t | state) and ref = log pi_ref of the *sampled* token (Schulman 2020, joschu.net/blog/kl-approx):

    k1 = lp - ref                            unbiased, can be negative; E over pi of a response = KL(pi || pi_ref)
    k2 = (lp - ref)^2 / 2                    biased, never negative
    k3 = exp(ref - lp) - 1 - (ref - lp)      unbiased, never negative, smaller variance near the reference

The figure that we report, and the one that the penalty pays, is the sum of k1 over a response's tokens, in nats.

    fixed      beta
    ziegler    beta <- beta (1 + clip(KL/target - 1, -0.2, 0.2) n / horizon)          lm-human-preferences, 2019
    hold       log beta <- log beta + P (e - e_before) + I e      e = clip(KL/target - 1, -1, 1)

Ziegler's rule is an integrator with a slow gain (at most 0.2 n / horizon an update: 0.5 % with 256 episodes and their
horizon 10,000): over runs as short as ours it arrives late and leaves the KL far above its target. `hold` is the same
integrator, faster, with a proportional part beside it that answers while KL still rises: without it a fast integrator
overshoots, since the policy needs some updates to follow beta (as PID Lagrangian methods: Stooke et al. 2020,
arXiv 2007.03964). It looks at the newest KL alone: a smoothed one comes late, and the toy policy of
tests/tasks/test_ppo_toy.py swung twice as wide about its target.

On the way up from 0, KL is under its target because the policy has not gone there yet, not because beta is too high:
before the KL has first come NEAR, beta is lowered only while sqrt(KL), which a policy walks at a steady pace, would
not get to its target within PATIENCE updates at the pace of the last one.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

CLIP = 0.2  # of Ziegler's relative error
PROPORTIONAL, INTEGRAL = 3.0, 0.15  # gains of `hold`, an update
NEAR, PATIENCE = 0.75, 20  # a share of the target; updates
RANGE = 1000.0  # beta stays within this factor of its start

Estimator = Literal["k1", "k2", "k3"]
Controller = Literal["fixed", "ziegler", "hold"]


def token_kl(log_probs: Tensor, reference: Tensor, mask: Tensor, estimator: Estimator = "k1") -> Tensor:
    """Estimate of the KL at each sampled token, in nats, 0 outside the mask. All [B, R], mask bool."""
    ratio = torch.where(mask, log_probs - reference, 0.0)
    if estimator == "k1":
        return ratio
    if estimator == "k2":
        return ratio**2 / 2
    return torch.expm1(-ratio) + ratio


def response_kl(log_probs: Tensor, reference: Tensor, mask: Tensor, estimator: Estimator = "k1") -> Tensor:
    """Estimated KL of each response, summed over its tokens [B], in nats."""
    return token_kl(log_probs, reference, mask, estimator).sum(dim=1)


@dataclass
class Beta:
    """The price of a nat. `update` after each rollout batch; `state` is all that a checkpoint must keep.

    kind: fixed | ziegler | hold. target: nats a response (not read when fixed). horizon: episodes (ziegler).
    """

    value: float
    kind: Controller = "fixed"
    target: float = 6.0
    horizon: int = 10_000
    _start: float = 0.0
    _last: float = 0.0
    _near: bool = False

    def __post_init__(self) -> None:
        if self.kind != "fixed" and not (self.value > 0 and self.target > 0 and self.horizon > 0):
            raise ValueError("an adaptive beta needs a start, a target and a horizon above 0")
        self._start = self.value

    def update(self, kl: float, episodes: int) -> None:
        """kl: mean KL of a response over the batch, in nats; episodes: responses in that batch, of all processes."""
        if self.kind == "ziegler":
            error = min(max(kl / self.target - 1, -CLIP), CLIP)
            self.value *= 1 + error * episodes / self.horizon
        elif self.kind == "hold":
            self._hold(kl)

    def _hold(self, kl: float) -> None:
        before, self._last = self._last, kl
        error, last = (min(max(x / self.target - 1, -1.0), 1.0) for x in (kl, before))
        self._near = self._near or kl >= NEAR * self.target
        change = INTEGRAL * error
        if self._near:
            change += PROPORTIONAL * (error - last)
        else:
            here, there = (math.sqrt(max(x, 0.0)) for x in (kl, before))
            if here + PATIENCE * (here - there) >= math.sqrt(self.target):
                change = 0.0
        self.value = min(max(self.value * math.exp(change), self._start / RANGE), self._start * RANGE)

    def state(self) -> dict[str, float | bool]:
        """For a checkpoint; plain JSON, exact."""
        return {
            "value": self.value,
            "start": self._start,
            "last": self._last,
            "near": self._near,
        }

    def load(self, state: dict[str, float | bool]) -> None:
        """Restore what `state` gave."""
        self.value, self._start = state["value"], state["start"]
        self._last, self._near = state["last"], state["near"]
