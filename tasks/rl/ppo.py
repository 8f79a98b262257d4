"""PPO as an algorithm of the loop (Ouyang et al. 2022, details of Huang et al. 2022 and 2024).

    targets    kl_t = estimator(log pi - log pi_ref);  r_t = -beta kl_t, and the score once, at the end
               GAE, returns, whitening over the batch of all processes
    losses     clipped surrogate and clipped value loss, each a sum over the minibatch's tokens divided by their number
               importance_cap: each token's surrogate times min(pi_trainer / pi_sampler, cap), both of the policy that
               sampled; null: times 1

The mathematics is ajuste/learning/rl/{kl,advantages,ppo}.py.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from ajuste.learning.rl import kl, ppo
from ajuste.learning.rl.advantages import Options, Reduce, episode_targets
from tasks.rl.algorithm import Items, Losses, Now
from tasks.rl.episodes import Episodes


@dataclass(frozen=True)
class Ppo:
    """estimator: of the KL that rewards pay. clip: of the ratio; value_clip: of the value around the old one."""

    options: Options
    estimator: kl.Estimator
    clip: float
    dual_clip: float | None
    value_clip: float | None
    value_coefficient: float
    importance_cap: float | None = None

    name: ClassVar[str] = "ppo"
    group: ClassVar[int] = 1
    first: ClassVar[tuple[str, ...]] = ("approx_kl", "clip_fraction")

    def settings(self) -> dict[str, object]:
        """How rewards and advantages were made."""
        options = self.options
        return {
            "gamma": options.gamma, "lam": options.lam, "terminal": options.terminal, "missing_end": options.missing,
            "missing_end_penalty": options.penalty, "whiten_rewards": options.whiten_rewards,
            "whiten_advantages": options.whiten_advantages, "kl_estimator": self.estimator, "clip": self.clip,
            "value_clip": self.value_clip, "importance_cap": self.importance_cap,
        }  # fmt: skip

    def targets(self, episodes: Episodes, beta: float, reduce: Reduce) -> Episodes:
        """Sets kl, rewards, advantages, returns and value_mask."""
        found = kl.token_kl(episodes.log_probs, episodes.reference, episodes.mask, self.estimator)
        targets = episode_targets(
            found, episodes.scores, episodes.values, episodes.mask, episodes.ended, beta, self.options, reduce
        )
        return replace(
            episodes, kl=found, rewards=targets.rewards, advantages=targets.advantages, returns=targets.returns,
            value_mask=targets.value_mask,
        )  # fmt: skip

    def losses(self, now: Now, part: Episodes, items: Items) -> Losses:
        """Policy and value loss, their means and clip fractions, and the largest ratio."""
        old, A, mask = part.log_probs, part.advantages, part.mask
        known = (part.values, part.returns, part.value_mask, self.value_clip)
        weights, cap = None, self.importance_cap
        if cap is not None:
            weights = ppo.importance_weights(old, part.drawn, mask, cap)
        policy = ppo.policy_loss(now.log_probs, old, A, mask, self.clip, items.tokens, self.dual_clip, weights)
        value = ppo.value_loss(now.values, *known, items.states)
        sums = ppo.policy_metrics(now.log_probs.detach(), old, now.entropy, A, mask, self.clip, items.tokens)
        sums |= ppo.value_metrics(now.values, *known, items.states)
        if weights is not None:
            sums["importance_mean"] = float((weights * mask).sum() / items.tokens)
            sums["importance_capped"] = float(((weights >= cap) & mask).sum() / items.tokens)
        del sums["entropy"]  # the row has that of the rollout
        largest = {"ratio_max": sums.pop("ratio_max")}
        return Losses({"policy_loss": (1.0, policy), "value_loss": (self.value_coefficient, value)}, sums, largest)
