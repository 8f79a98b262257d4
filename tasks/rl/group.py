"""GRPO and RLOO as algorithms of the loop: what a response is worth, the other responses to its prompt say.

    targets    r_i = score_i, less beta KL_i where KL is paid in the reward (k1, summed over the response)
               advantages of the group, the same for each token of a response
    losses     clipped surrogate of each token or of the whole response, + beta k3 where KL is paid in the loss; one
               mean over the minibatch (of tokens, of responses, or by a constant) for both

The mathematics is ajuste/learning/rl/group.py. No value function: `values` stays unknown all the way.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator

from ajuste.learning.rl import group as groups
from ajuste.learning.rl import kl
from ajuste.learning.rl.advantages import Reduce, per_token_rewards
from ajuste.models.one_base import Settings
from tasks.rl.algorithm import Items, Losses, Now
from tasks.rl.config import SamplesConfig
from tasks.rl.episodes import Episodes
from tasks.rl.scores.kinds import PATTERN


class GroupConfig(SamplesConfig):
    """What sections `grpo` and `rloo` share."""

    score: str = Field(pattern=PATTERN, description="What is paid for: tasks/rl/scores/kinds.py.")
    dtype: Literal["float32", "bfloat16"] = Field(description="Of the frozen base and the products.")
    r: int = Field(ge=1, description="Rank of B A of the policy's adapter.")
    alpha: float = Field(gt=0, description="The update is scaled by alpha/r.")
    targets: list[str] = Field(min_length=1, description="Last names of the adapted layers, or [all-linear].")
    float32_head: bool = Field(description="Logits in float32, of sampler and trainer, above a bfloat16 base.")
    group: int = Field(ge=2, description="Responses to each prompt; batch_rows holds whole groups.")
    clip_low: float = Field(gt=0, lt=1, description="The ratio counts from 1 - clip_low on.")
    clip_high: float = Field(gt=0, description="The ratio counts up to 1 + clip_high; above clip_low: clip-higher.")
    radar_prompts: int = Field(ge=1, description="Validation prompts that choose an update; as many others judge it.")

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        if self.batch_rows % self.group:
            raise ValueError(f"batch_rows {self.batch_rows} are no whole groups of {self.group}: make it a multiple")
        return self

    def settings(self) -> Settings:
        """What ajuste/models/one_base.py needs of this section: no value function."""
        return Settings(self.r, self.alpha, tuple(self.targets), value="none", float32_head=self.float32_head)


@dataclass(frozen=True)
class Group:
    """name: grpo or rloo. baseline: `others` is RLOO's; then `scale` is not read. longest: `max_new_tokens`."""

    name: str
    group: int
    baseline: Literal["mean", "others"]
    scale: groups.Scale
    ratio: groups.Level
    mean: groups.Mean
    clip_low: float
    clip_high: float
    kl_in: Literal["loss", "reward"]
    longest: int

    first: ClassVar[tuple[str, ...]] = ("approx_kl", "clip_fraction")

    @property
    def clip(self) -> float:
        """The nearer bound: what a gap between sampler and trainer is held against."""
        return min(self.clip_low, self.clip_high)

    def settings(self) -> dict[str, object]:
        """How rewards and advantages were made."""
        return {
            "group": self.group, "baseline": self.baseline, "scale": self.scale, "ratio": self.ratio,
            "mean": self.mean, "clip_low": self.clip_low, "clip_high": self.clip_high, "kl_in": self.kl_in,
        }  # fmt: skip

    def targets(self, episodes: Episodes, beta: float, reduce: Reduce) -> Episodes:
        """Sets kl, rewards, advantages, flat, and betas where KL is paid in the loss."""
        mask, scores = episodes.mask, episodes.scores
        found = kl.token_kl(episodes.log_probs, episodes.reference, mask)
        in_reward = beta if self.kl_in == "reward" else 0.0
        rewards = per_token_rewards(found, scores, mask, episodes.ended, in_reward, missing="none")[0]
        paid = scores.double() - in_reward * found.double().sum(1)
        if self.baseline == "others":
            advantages = groups.leave_one_out(paid, self.group)
        else:
            advantages = groups.group_advantages(paid, self.group, self.scale)
        return replace(
            episodes, kl=found, rewards=rewards, advantages=advantages[:, None] * mask,
            flat=groups.flat(scores, self.group), betas=torch.full((len(mask),), beta if self.kl_in == "loss" else 0.0),
        )  # fmt: skip

    def losses(self, now: Now, part: Episodes, items: Items) -> Losses:
        """The policy loss, the KL at its price, clip fraction and the largest ratio."""
        old, A, mask = part.log_probs, part.advantages, part.mask
        clip, size = (self.clip_low, self.clip_high, self.ratio), (self.mean, items.rows, items.tokens, self.longest)
        surrogate = groups.policy_loss(now.log_probs, old, A, mask, *clip)
        terms = {"policy_loss": (1.0, groups.mean_of(surrogate, mask, *size))}
        if self.kl_in == "loss":
            distance = groups.kl_loss(now.log_probs, part.reference, mask)
            terms["kl_loss"] = (float(part.betas[0]), groups.mean_of(distance, mask, *size))
        sums = groups.metrics(now.log_probs.detach(), old, A, mask, *clip, items.tokens)
        largest = {"ratio_max": sums.pop("ratio_max")}
        return Losses(terms, sums, largest)
