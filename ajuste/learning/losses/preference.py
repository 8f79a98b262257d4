"""Losses of preferences without a reward model: the policy's own log-probabilities say which response is better.

    s(y) = log pi(y | x) - log pi_ref(y | x)        how much likelier the policy makes y than its reference does
    h = s(y_w) - s(y_l)                             y_w was preferred to y_l
    r(x, y) = beta s(y)                             the implicit reward: at the best policy, r up to a function of x

    sigmoid   -log sigma(beta h)                                                   DPO, Rafailov et al. (2023)
    cdpo      -(1 - e) log sigma(beta h) - e log sigma(-beta h)                    a share e of the labels is wrong
    robust    ((1 - e)(-log sigma(beta h)) - e (-log sigma(-beta h))) / (1 - 2 e)  unbiased, Chowdhury et al. (2024)
    hinge     max(0, 1 - beta h)                                                   SLiC, Zhao et al. (2023)
    ipo       (h - 1/(2 beta))^2                      s a token                    Azar et al. (2024)
    simpo     -log sigma(beta h - gamma)              s = log pi(y | x) / |y|      Meng et al. (2024), no reference
    orpo      -log pi(y_w | x)/|y_w| - beta log sigma(h)                           Hong et al. (2024), no reference
              s = log odds = m - log(1 - e^m)         m = log pi(y | x) / |y|

log pi(y | x) is a sum over the tokens of y. IPO divides s by them, as its authors' results do and TRL with them. With
policy = reference: sigmoid is ln 2, ipo (1/(2 beta))^2, hinge 1, and all rewards are 0. The gradient of sigmoid is
-beta sigma(-beta h) (grad log pi(y_w) - grad log pi(y_l)).

Displacement: only the difference h is asked for, so y_w itself may become less likely while the margin grows.

    d = -(log pi(y_w | x) - log pi_ref(y_w | x)) / |y_w|        nats a token that the preferred response has lost

K ranked responses are all their pairs, and count as one comparison (ajuste/learning/losses/bradley_terry.py).
Run it: stage `dpo`. Tested against autograd, brute force and TRL: tests/learning/test_preference.py.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ajuste.learning.losses.bradley_terry import pairs

REFERENCE_FREE = ("orpo", "simpo")
A_TOKEN = ("ipo", *REFERENCE_FREE)  # s is divided by the tokens of y
LOSSES = ("sigmoid", "ipo", "cdpo", "robust", "hinge", *REFERENCE_FREE)
CERTAIN = -1e-7  # nats a token; nearer to 0 the odds have no number


class Preference(NamedTuple):
    """Which loss, and its constants. label_smoothing is the e of cdpo and robust, gamma that of simpo."""

    loss: str
    beta: float
    label_smoothing: float = 0.0
    gamma: float = 0.0


class Responses(NamedTuple):
    """Per response, [M] each: sum of log pi(y_t), the same of the reference, and the tokens |y|."""

    log_probs: Tensor
    reference: Tensor
    tokens: Tensor


def scores(preference: Preference, responses: Responses) -> Tensor:
    """s(y) of each response [M], with the gradient of log_probs. Raises ValueError for a loss that does not exist."""
    if preference.loss not in LOSSES:
        raise ValueError(f"loss {preference.loss!r} does not exist: {', '.join(LOSSES)}")
    log_probs = responses.log_probs
    if preference.loss not in REFERENCE_FREE:
        log_probs = log_probs - responses.reference
    if preference.loss in A_TOKEN:
        log_probs = log_probs / responses.tokens
    return _log_odds(log_probs) if preference.loss == "orpo" else log_probs


def rewards(preference: Preference, responses: Responses) -> Tensor:
    """r(x, y) = beta s(y) of each response [M]."""
    return preference.beta * scores(preference, responses)


def pair_losses(preference: Preference, responses: Responses, better: Tensor, worse: Tensor) -> Tensor:
    """The loss of each pair [P]. better, worse: places of its two responses, int64 [P]."""
    loss, beta, e, gamma = preference
    s = scores(preference, responses)
    h = s[better] - s[worse]
    if loss == "ipo":
        return (h - 1 / (2 * beta)) ** 2
    if loss == "hinge":
        return torch.relu(1 - beta * h)
    if loss == "orpo":
        return -(responses.log_probs / responses.tokens)[better] - beta * F.logsigmoid(h)
    if loss == "simpo":
        return -F.logsigmoid(beta * h - gamma)
    right, wrong = -F.logsigmoid(beta * h), -F.logsigmoid(-beta * h)
    if loss == "cdpo":
        return (1 - e) * right + e * wrong
    if loss == "robust":
        return ((1 - e) * right - e * wrong) / (1 - 2 * e)
    return right


def comparison_loss(
    preference: Preference, responses: Responses, sizes: Tensor, items: Tensor | int | None = None
) -> Tensor:
    """Sum over the comparisons of the mean loss of their pairs, divided by `items`: a scalar.

    sizes: [N], the responses of each comparison, the best first, M in sum. items: comparisons of the whole optimiser
    step, so that accumulation changes nothing; None means N.
    """
    better, worse, owner = (places.to(responses.log_probs.device) for places in pairs(sizes.cpu()))
    losses = pair_losses(preference, responses, better, worse)
    return over_comparisons(losses, owner, sizes.to(losses.device)) / (len(sizes) if items is None else items)


def over_comparisons(values: Tensor, owner: Tensor, sizes: Tensor) -> Tensor:
    """Sum over the comparisons of the mean of their pairs' values [P]: a scalar."""
    share = 2.0 / (sizes * (sizes - 1)).to(values)
    return (values * share[owner]).sum()


def displacement(responses: Responses) -> Tensor:
    """d of each response [M]: nats a token that it has lost since the reference."""
    return -(responses.log_probs - responses.reference) / responses.tokens


def _log_odds(m: Tensor) -> Tensor:
    """log(p / (1 - p)) for p = e^m, m below 0."""
    m = m.clamp(max=CERTAIN)
    return m - torch.log(-torch.expm1(m))
