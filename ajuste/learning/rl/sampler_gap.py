"""How far apart two ways of computing the same log-probabilities are: the sampler's and the trainer's.

    g_t = log pi_trainer(y_t) - log pi_sampler(y_t)          same weights, same token, other order of the sums

With exact numbers g is 0. In bfloat16 it is not, and a token whose ratio e^g leaves [1 - c, 1 + c] stands outside PPO's
clip before anything has been learnt. Truncated importance weights put the difference back into the loss:
`importance_weights` in ajuste/learning/rl/ppo.py.
"""

from torch import Tensor

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def gap_figures(trainer: Tensor, sampler: Tensor, mask: Tensor, clip: float | None) -> dict[str, float]:
    """Of |g| over the tokens of the mask: the largest, the mean, quantiles (the nearest token's).

    With a clip also the share of tokens that g alone puts outside. All tensors of one shape, mask bool, at least one
    True. A g that is no number makes the largest and the mean none either.
    """
    gap = (trainer - sampler)[mask].double()
    size = gap.abs().sort().values
    found = {"sampler_gap": float(size[-1]), "sampler_gap_mean": float(size.mean())}
    for name, share in QUANTILES.items():
        found[f"sampler_gap_{name}"] = float(size[round(share * (len(size) - 1))])
    if clip is not None:
        found["sampler_gap_beyond_clip"] = float(((gap.exp() - 1).abs() > clip).double().mean())
    return found
