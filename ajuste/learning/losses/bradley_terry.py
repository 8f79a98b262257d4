"""The loss of a reward model: human comparisons as the outcome of a match between two rewards.

    p(y_w preferred to y_l | x) = sigmoid(r(x, y_w) - r(x, y_l))                               Bradley and Terry, 1952
    z = r(x, y_w) - r(x, y_l) - m                m: a margin that the better one has to win by (Llama 2), else 0
    L = -a log sigmoid(z) - (1 - a) log sigmoid(-z)       a: the share of people who agree, a soft label, else 1

Only differences count: a constant added to all rewards changes nothing, so a reward model is centred after training
(ajuste/models/reward.py). With equal rewards L = ln 2, and swapping a pair gives L(-d) - L(d) = d.

K responses that one person ranked are K (K - 1) / 2 pairs that know much of each other. They are one element of a
batch, the mean over its pairs, as in InstructGPT: counted one by one, a response would be learnt K - 1 times.

    rewards = [r_1, r_2 | r_3, r_4, r_5]     sizes = [2, 3]      each comparison's responses, the best first

Run it: stage `reward`. Differs from the papers: margin and soft label are per comparison and can be used together.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def bradley_terry(
    chosen: Tensor, rejected: Tensor, margin: Tensor | None = None, agreement: Tensor | None = None
) -> Tensor:
    """The loss of each pair in nats, all [N]. Rewards of any floating type; float32 (or float64) comes back.

    margin: in units of reward. agreement: in [0, 1]. None means 0 and 1.
    """
    kind = torch.promote_types(chosen.dtype, torch.float32)
    z = chosen.to(kind) - rejected.to(kind)
    if margin is not None:
        z = z - margin
    if agreement is None:
        return -F.logsigmoid(z)
    return -agreement * F.logsigmoid(z) - (1 - agreement) * F.logsigmoid(-z)


def comparison_loss(
    rewards: Tensor,
    sizes: Tensor,
    margin: Tensor | None = None,
    agreement: Tensor | None = None,
    items: Tensor | int | None = None,
) -> Tensor:
    """Sum over the comparisons of the mean loss of their pairs, divided by `items`: a scalar.

    rewards: [M], the responses of one comparison after the other, the best first. sizes: [N] of them, M in sum.
    margin, agreement: [N], the same for all pairs of a comparison. items: comparisons of the whole optimiser step, so
    that accumulation changes nothing; None means N.
    """
    better, worse, owner = pairs(sizes)
    losses = bradley_terry(
        rewards[better.to(rewards.device)],
        rewards[worse.to(rewards.device)],
        *(None if values is None else values[owner].to(rewards.device) for values in (margin, agreement)),
    )
    share = 2.0 / (sizes * (sizes - 1))[owner]
    return (losses * share.to(losses)).sum() / (len(sizes) if items is None else items)


def pairs(sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every pair of every comparison: (place of the better, place of the worse, which comparison), int64 [P].

    Places count through all comparisons. Raises ValueError for a comparison of fewer than two responses.
    """
    if len(sizes) == 0 or int(sizes.min()) < 2:
        raise ValueError("a comparison needs at least two responses")
    found, begin = [], 0
    for number, size in enumerate(sizes.tolist()):
        places = torch.combinations(torch.arange(begin, begin + size))  # (i, j) with i before j
        found.append(torch.cat([places, torch.full((len(places), 1), number)], dim=1))
        begin += size
    better, worse, owner = torch.cat(found).T
    return better, worse, owner
