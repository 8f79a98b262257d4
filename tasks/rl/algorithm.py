"""What makes the loop of tasks/rl/loop.py an algorithm: which targets it sets, and which losses it takes from them.

    targets    once an update: scores, KL, values -> advantages, and whatever `losses` will read
    losses     once a micro-batch of an optimiser step: what the policy says now -> terms to minimise, and figures

Both are functions of tensors on the CPU and know neither models nor folders: the loop samples, scores, runs the policy,
adds the gradients up over micro-batches and processes, and steps. tasks/rl/ppo.py is one, tasks/rl/group.py are two;
tests/made/reinforce.py is one in twenty lines, REINFORCE with the mean of a prompt's responses as baseline.
"""

from typing import NamedTuple, Protocol

from torch import Tensor

from ajuste.learning.rl.advantages import Reduce
from tasks.rl.episodes import Episodes


class Now(NamedTuple):
    """What the policy says of a micro-batch in this optimiser step: float32 on the CPU, 0 where the mask is False."""

    log_probs: Tensor  # [B, R], with gradients
    entropy: Tensor  # [B, R], in nats
    values: Tensor | None  # [B, R+1], with gradients: V of the state before token t, and after the last; or no V


class Items(NamedTuple):
    """What a minibatch consists of, over all its micro-batches and processes: sums over it are divided by one of these.

    A loss that is divided by the items of the whole minibatch adds up, and so does its gradient.
    """

    rows: float
    tokens: float
    states: float  # those of `value_mask`; 0 for an algorithm that sets none


class Losses(NamedTuple):
    """Of a micro-batch. terms: by name, the weight and the share of the minibatch's term, a scalar with gradients."""

    terms: dict[str, tuple[float, Tensor]]
    sums: dict[str, float]  # figures that add up over micro-batches and processes; the row has the mean of the steps
    largest: dict[str, float]  # figures of which the row has the largest of all steps


class Algorithm(Protocol):
    """The loop's other half."""

    name: str  # its section of params.yaml, for messages
    group: int  # responses to each prompt of a batch: rows i * group to (i + 1) * group answer the same one
    clip: float | None  # the ratio counts within 1 - clip and 1 + clip; None: no such bound
    first: tuple[str, ...]  # names in `sums` that the row also gives for the update's first step alone, as first_<name>

    def settings(self) -> dict[str, object]:
        """What a reader of a recorded update must know beside the temperature; plain JSON."""

    def targets(self, episodes: Episodes, beta: float, reduce: Reduce) -> Episodes:
        """The episodes of this process with their targets. beta: the price of a nat; reduce sums over all processes."""

    def losses(self, now: Now, part: Episodes, items: Items) -> Losses:
        """The losses of the micro-batch `part`, rows of what `targets` returned."""
