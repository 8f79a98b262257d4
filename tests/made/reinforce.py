"""A second algorithm for the loop, as small as one can be: REINFORCE, the mean of a prompt's responses as baseline.

    A_b = r_b - mean of the rewards of the prompt's `group` responses         r_b = score_b - beta KL_b
    L = -sum_t A_b log pi(y_t) / N                                            no clip, no critic
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from ajuste.learning.rl.advantages import Reduce
from ajuste.learning.rl.kl import response_kl
from tasks.rl.algorithm import Items, Losses, Now
from tasks.rl.episodes import Episodes


@dataclass(frozen=True)
class Reinforce:
    """group: responses a prompt."""

    group: int
    name: ClassVar[str] = "reinforce"
    clip: ClassVar[float | None] = None
    first: ClassVar[tuple[str, ...]] = ()

    def settings(self) -> dict[str, object]:
        return {"group": self.group}

    def targets(self, episodes: Episodes, beta: float, reduce: Reduce) -> Episodes:
        rewards = episodes.scores - beta * response_kl(episodes.log_probs, episodes.reference, episodes.mask)
        groups = rewards.view(-1, self.group)
        advantages = (groups - groups.mean(1, keepdim=True)).flatten()
        return replace(episodes, advantages=advantages[:, None] * episodes.mask)

    def losses(self, now: Now, part: Episodes, items: Items) -> Losses:
        loss = -(part.advantages * now.log_probs).sum() / items.tokens
        return Losses({"policy_loss": (1.0, loss)}, {"nats": float((now.entropy * part.mask).sum() / items.tokens)}, {})
