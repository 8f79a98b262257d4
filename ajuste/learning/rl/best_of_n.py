"""Best-of-n: draw n responses, keep the one that a proxy likes best. What that gains, and how far from p it goes.

    value(n) = E[v of the best by proxy of n draws], estimated from all N >= n samples of a prompt, not from n of them:
               sum_i C(i - 1, n - 1) / C(N, n) v_(i)          v_(i): of the sample with the i-th lowest proxy
               the mean over all subsets of n, so it is unbiased (Nakano et al., 2021, WebGPT); equals share a weight
    KL(p_n || p) <= ln n - (n - 1)/n                          the bound (Stiennon et al., 2020; Beirami et al., 2024)

The bound is reached where no two responses have the same score. With equals (the same response drawn twice is one) the
KL is less. All responses of one score keep p's proportions among themselves, so with their masses P_g in ascending
order of the score and F_g = P_1 + ... + P_g:

    p_n(y)/p(y) = (F_g^n - F_(g-1)^n) / P_g                   KL = sum_g (F_g^n - F_(g-1)^n) ln (p_n(y)/p(y))

From N samples the P_g are shares of the ranks. N samples without equals would have KL_N, which is less than the bound
only because N is finite, so

    measured(n) = bound(n) KL of the shares / KL_N

is the bound without equals, 0 of one response alone, the KL itself as N grows, and never above the bound: equals are
distinct ones put together, and no KL rises by that.

    weights([0.1, 0.7, 0.7, 0.2], 2)                            # [4], they sum to 1
"""

import math
from collections.abc import Sequence

import numpy as np


def kl_bound(n: int) -> float:
    """ln n - (n - 1)/n in nats, the most that the best of n can be from what it was drawn from."""
    return math.log(n) - (n - 1) / n


def weights(proxy: Sequence[float] | np.ndarray, n: int) -> np.ndarray:
    """The chance [N] of each sample to be the best of n that are drawn from the N without replacement.

    Equals are the best equally often. Raises ValueError unless 1 <= n <= N, and for a score that is no number.
    """
    proxy = _checked(proxy, n)
    below = _subsets(len(proxy), n)
    _, group, sizes = np.unique(proxy, return_inverse=True, return_counts=True)
    ends = sizes.cumsum()
    return ((below[ends] - below[ends - sizes]) / sizes)[group]


def best_of_n(proxy: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    """The expected value [P] of the best of n by `proxy` [P, N], for each prompt. values: [P, N], proxy itself too."""
    return np.array([weights(scores, n) @ row for scores, row in zip(proxy, values, strict=True)])


def measured_kl(proxy: Sequence[float] | np.ndarray, n: int) -> float:
    """KL(p_n || p) of a prompt in nats, from the scores of N samples of p: at most `kl_bound(n)`.

    Equal responses must have equal scores. Raises ValueError as `weights` does.
    """
    proxy = _checked(proxy, n)
    shares = np.unique(proxy, return_counts=True)[1] / len(proxy)
    distinct = exact_kl(np.full(len(proxy), 1 / len(proxy)), n)
    return kl_bound(n) * min(1.0, exact_kl(shares, n) / distinct) if n > 1 else 0.0


def exact_kl(masses: np.ndarray, n: int) -> float:
    """KL(p_n || p) in nats where p has these masses [G], in ascending order of the score."""
    F = np.minimum(np.cumsum(masses), 1.0)
    p_n = np.diff(F**n, prepend=0.0)
    kept = p_n > 0
    return max(0.0, float((p_n[kept] * np.log(p_n[kept] / masses[kept])).sum()))


def _checked(proxy: Sequence[float] | np.ndarray, n: int) -> np.ndarray:
    proxy = np.asarray(proxy, dtype=np.float64)
    if not 1 <= n <= len(proxy):
        raise ValueError(f"best of {n}: there are {len(proxy)} samples of the prompt, and n is from 1 to that")
    if not np.isfinite(proxy).all():
        raise ValueError("a score of the proxy is no finite number")
    return proxy


def _subsets(N: int, n: int) -> np.ndarray:
    """C(i, n) / C(N, n) for i = 0 ... N: the share of the subsets of n that lie within the first i."""
    return np.array([math.comb(i, n) for i in range(N + 1)], dtype=object).astype(float) / float(math.comb(N, n))
