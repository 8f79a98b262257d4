"""Is one model better than another on the same rows? The paired bootstrap, one-sided.

    d_i = a_i - b_i              gain of row i: higher is better (of losses: the other's minus one's own)
    gain = sum_i d_i / sum_i w_i           w_i: size of a row; 1 for a row that is right or wrong, tokens for a loss
    lower = 2.5 % percentile of sum(d) / sum(w) over resamples of the rows         Efron's percentile bootstrap
    better by more than m:  lower > m              not worse than m:  lower > -m

Rows are drawn whole and in pairs, so what makes a row hard for both models cancels. "lower > 0" is a test at the
one-sided level of 2.5 %: with no true difference it says "better" in about one of forty comparisons.
benchmarks/gate.py measures that and the power.
"""

from dataclasses import dataclass

import numpy as np

from ajuste.learning.statistics.metrics import percentile_interval, resamples

RESAMPLES = 4000
FEWEST = 2  # rows; of one row nothing varies


@dataclass(frozen=True)
class Gain:
    """`value` and its one-sided 97.5 % lower bound, in units of a row (or a token), over `rows` rows."""

    value: float
    lower: float
    rows: int


def gain(d: np.ndarray, weights: np.ndarray | None = None) -> Gain:
    """The gain of paired rows. d: differences [N], weights: sizes [N] above 0, None: all 1.

    Raises ValueError for fewer than two rows, unequal lengths, and what is no number.
    """
    d = np.asarray(d, dtype=np.float64)
    weights = np.ones_like(d) if weights is None else np.asarray(weights, dtype=np.float64)
    if d.ndim != 1 or d.shape != weights.shape:
        raise ValueError(f"differences and weights are one number a row, not {d.shape} and {weights.shape}")
    if len(d) < FEWEST:
        raise ValueError(f"{len(d)} paired rows: at least {FEWEST} are needed")
    if not (np.isfinite(d).all() and np.isfinite(weights).all() and (weights > 0).all()):
        raise ValueError("a difference or a weight is no finite number, or a weight is not above 0")
    return Gain(float(d.sum() / weights.sum()), float(lower_bounds(d[:, None], weights[:, None])[0]), len(d))


def lower_bounds(d: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """One-sided 97.5 % lower bounds [K] of K comparisons of the same number of rows, all by one fixed set of resamples.

    d: [N, K]. weights: [N, K], or [N, 1] where all have the same.
    """
    counts = resamples(len(d), RESAMPLES, seed=0)
    means = (counts @ d) / (counts @ weights)  # [B, K]
    return np.array([percentile_interval(column)[0] for column in means.T])
