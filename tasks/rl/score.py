"""Steps 1 and 2 of the loop: the policy answers, and its answers are judged.

    rollout    y_t ~ softmax(z_t / T) of the policy
    scores     the score function's, a number a response (tasks/rl/scores/kinds.py)
    opinions   log pi(y_t), entropy and V (if there is one) of the policy, log pi_ref(y_t) of the reference, at the same
               temperature

The opinions are computed in the micro-batches of the first epoch, by the code that learns: so the first ratio of an
update is exactly 1. The sampler's own log-probs stay beside them: the gap between the two is watched
(ajuste/learning/rl/sampler_gap.py), and an algorithm may weigh tokens by it.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ajuste.learning.rl import kl, rollout
from ajuste.learning.rl.sampler_gap import gap_figures
from ajuste.models.one_base import OneBase
from tasks.rl.episodes import Episodes, repeats
from tasks.rl.world import World

Score = Callable[[list[list[int]], Tensor, Tensor], Tensor]  # (prompts, responses [B, R], mask [B, R]) -> [B]
Row = dict[str, float]


def answered(
    one: OneBase, prompts: list[list[int]], max_new_tokens: int, stop_ids: list[int], temperature: float,
    generator: torch.Generator,
) -> Episodes:  # fmt: skip
    """The policy's responses, with their log-probs as the sampler saw them."""
    found = rollout.sample(one, prompts, max_new_tokens, stop_ids, padding(stop_ids), temperature, generator)
    return Episodes(prompts, *(tensor.cpu() for tensor in found[:3]), drawn=found.log_probs.cpu())


def padding(stop_ids: list[int]) -> int:
    """A token id that ends nothing; the mask says what is padding."""
    return next(token for token in range(len(stop_ids) + 1) if token not in stop_ids)


@torch.no_grad()
def judged(episodes: Episodes, one: OneBase, score: Score, parts: list[Tensor], temperature: float) -> Episodes:
    """With scores, and what policy and reference think of the sampled tokens. parts: row numbers of micro-batches."""
    B, R = episodes.mask.shape
    scores, values = torch.empty(B), None
    log_probs, entropy, reference = (torch.zeros(B, R) for _ in range(3))
    for part in parts:
        batch = episodes.rows(part).batch()
        scores[part] = score(*batch).float().cpu()
        *found, valued = one.policy_and_values(*batch, temperature)
        log_probs[part], entropy[part] = (tensor.cpu() for tensor in found)
        if valued is not None:
            values = torch.zeros(B, R + 1) if values is None else values
            values[part] = valued.cpu()
        reference[part] = one.reference(*batch, temperature).cpu()
    return replace(
        episodes, scores=scores, values=values, log_probs=log_probs, entropy=entropy, reference=reference
    )


def figures(episodes: Episodes, clip: float | None, beta: float, world: World) -> Row:
    """What an update's episodes came to, over all processes. clip: of the algorithm's ratio, if it has one."""
    mask = episodes.mask
    k1, k2, k3 = (kl.response_kl(episodes.log_probs, episodes.reference, mask, name) for name in ("k1", "k2", "k3"))
    columns = {
        "score": episodes.scores, "kl": k1, "k2": k2, "k3": k3, "rlhf_reward": episodes.scores - beta * k1,
        "length": mask.sum(1), "ended": episodes.ended, "repeats": repeats(episodes),
        "entropy": episodes.entropy.sum(1), "squares": episodes.scores.double() ** 2,
    }  # fmt: skip
    if episodes.flat is not None:
        columns["flat_groups"] = episodes.flat  # all groups have as many rows: the share of rows is that of groups
    totals = world.totals({name: column.double().sum() for name, column in columns.items()})
    means = {name: total / (len(mask) * world.processes) for name, total in totals.items()}
    gap = gap_figures(*(world.stacked(x) for x in (episodes.log_probs, episodes.drawn, mask)), clip)
    return means | {
        "entropy": totals["entropy"] / totals["length"],
        "score_std": max(0.0, means.pop("squares") - means["score"] ** 2) ** 0.5,
        "beta": beta,
        **gap,
    }
