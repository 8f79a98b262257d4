"""The episodes of one update: what was asked and answered, and every number that the algorithm makes of it.

    prompts      B lists of token ids                   responses, mask     [B, R], the end token included
    drawn        log-probs as the sampler saw them while it drew the tokens
    log_probs    of the policy that sampled, by the code that learns, at the same temperature; fixed for all epochs
    reference    log-probs of the reference; entropy of the policy in nats; each [B, R]
    new_log_probs    of the last epoch, just before its optimiser step
    values, returns, rewards, value_mask    [B, R+1]: column t belongs to the state before token t
    advantages   [B, R], whitened if the algorithm does; scores, ended [B]
    flat, betas  [B]: no variance in its group's scores; the price of a nat of KL in the loss
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Episodes:
    """All tensors on the CPU, float32, 0 where the mask is False; None: not known yet, or not to this algorithm."""

    prompts: list[list[int]]
    responses: Tensor
    mask: Tensor
    ended: Tensor
    drawn: Tensor | None = None
    scores: Tensor | None = None
    log_probs: Tensor | None = None
    reference: Tensor | None = None
    entropy: Tensor | None = None
    values: Tensor | None = None
    kl: Tensor | None = None
    rewards: Tensor | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None
    value_mask: Tensor | None = None
    flat: Tensor | None = None
    betas: Tensor | None = None
    new_log_probs: Tensor | None = None

    def batch(self) -> tuple[list[list[int]], Tensor, Tensor]:
        """(prompts, responses, mask): what models and scores read."""
        return self.prompts, self.responses, self.mask

    def rows(self, chosen: Tensor) -> "Episodes":
        """Those of the given numbers."""
        tensors = {name: tensor[chosen] for name, tensor in self.tensors().items()}
        return Episodes([self.prompts[i] for i in chosen.tolist()], **tensors)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def repeats(episodes: Episodes) -> Tensor:
    """Of each response, the share of its bigrams that it has had before [B]: 0 for no repetition, towards 1 for loops.

    A response of fewer than two tokens repeats nothing.
    """
    shares = torch.zeros(len(episodes.prompts))
    for number, (row, mask) in enumerate(zip(episodes.responses, episodes.mask, strict=True)):
        ids = row[mask].tolist()
        bigrams = list(zip(ids, ids[1:], strict=False))
        if bigrams:
            shares[number] = 1 - len(set(bigrams)) / len(bigrams)
    return shares
