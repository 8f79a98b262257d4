"""Is one model better than another on the same rows? A paired, one-sided bound at any level.

    d_i = a_i - b_i              gain of row i: higher is better (of losses: the other's minus one's own)
    gain = sum_i d_i / sum_i w_i           w_i: size of a row; 1 for a row that is right or wrong, tokens for a loss
    e_i = d_i - gain w_i,   error^2 = M / (M - 1) sum_i e_i^2 / (sum_i w_i)^2          the delta method
    lower = gain - error q,   q - c (q^2/3 + 1/6) + c^2 q^3/27 = t,   c = max(0, -skew) / sqrt(M)
            t: Student's at the level, m - 1 degrees of freedom; m = (sum w)^2 / sum w^2, as many rows of one size
            skew = mean(e^3) / mean(e^2)^1.5; q is Hall's correction for it (1992), where it is against us: his cubic
            takes the skewness out of (found - true) / error and rises everywhere, so q is one; without skewness it is t
    better by more than m:  lower > m              not worse than m:  lower > -m

Rows are taken whole and in pairs, so what makes a row hard for both models cancels. Rows that share a source are one
draw: with `clusters` all sums above are over clusters, and M is their number.

Why no bootstrap: a gate that looks every night asks at levels of 0.01 %, where 4,000 resamples have no row left, and
of 30 rows the percentile bootstrap promises more than it holds. benchmarks/gate.py measures error and power.

    seen     = (t + z) error                  the least true gain that is found with a chance of 80 %, z = 0.84
    rows(g)  = M ((t + z) error / g)^2        the rows (or clusters) of this kind that a gain g needs for that
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

FEWEST = 2  # rows; of one row nothing varies
LEVEL = 0.025  # one-sided
POWER = 0.8


@dataclass(frozen=True)
class Gain:
    """`value` and its one-sided lower bound at `level`, in units of a row (or a token), over `rows` rows."""

    value: float
    lower: float
    rows: int
    clusters: int
    error: float
    level: float

    @property
    def seen(self) -> float:
        """The least true gain that these rows show with a chance of POWER."""
        return _factor(self.clusters, self.level) * self.error

    def rows_for(self, gain: float) -> int:
        """How many rows like these show a true `gain` above 0 with a chance of POWER."""
        return max(FEWEST, math.ceil(self.rows * (_factor(self.clusters, self.level) * self.error / gain) ** 2))


def gain(
    d: np.ndarray, weights: np.ndarray | None = None, level: float = LEVEL, clusters: Sequence[Hashable] | None = None
) -> Gain:
    """The gain of paired rows. d: differences [N]; weights: sizes [N] above 0, None: all 1; clusters: a row's source.

    Raises ValueError for fewer than two rows or clusters, unequal lengths, and what is no number.
    """
    d = np.asarray(d, dtype=np.float64)
    weights = np.ones_like(d) if weights is None else np.asarray(weights, dtype=np.float64)
    if d.ndim != 1 or d.shape != weights.shape:
        raise ValueError(f"differences and weights are one number a row, not {d.shape} and {weights.shape}")
    if len(d) < FEWEST:
        raise ValueError(f"{len(d)} paired rows: at least {FEWEST} are needed")
    if not (np.isfinite(d).all() and np.isfinite(weights).all() and (weights > 0).all()):
        raise ValueError("a difference or a weight is no finite number, or a weight is not above 0")
    rows = len(d)
    if clusters is not None:
        d, weights = together(d, clusters), together(weights, clusters)
        if len(d) < FEWEST:
            raise ValueError(f"all {rows} rows share one source: at least {FEWEST} sources are needed")
    value, error, lower = bounds(d[:, None], weights[:, None], level)
    return Gain(float(value[0]), float(lower[0]), rows, len(d), float(error[0]), level)


def together(values: np.ndarray, clusters: Sequence[Hashable]) -> np.ndarray:
    """Sums [M] of values [N] by cluster. Raises ValueError for another number of clusters than values."""
    if len(clusters) != len(values):
        raise ValueError(f"{len(clusters)} clusters of {len(values)} rows: one a row is needed")
    places: dict[Hashable, int] = {}
    owner = [places.setdefault(cluster, len(places)) for cluster in clusters]
    return np.bincount(owner, values, minlength=len(places))


def bounds(d: np.ndarray, weights: np.ndarray, level: float | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(gains, their errors, one-sided lower bounds), each [K], of K comparisons of the same number of rows.

    d: [N, K]. weights: [N, K], or [N, 1] where all have the same. level: the chance that a bound is above the truth.
    """
    rows, total = len(d), weights.sum(axis=0)
    value = d.sum(axis=0) / total
    left = d - value * weights
    squares = (left**2).sum(axis=0)
    error = np.sqrt(rows / (rows - 1) * squares) / total
    spread = squares / rows
    skew = np.divide((left**3).mean(axis=0), spread**1.5, out=np.zeros_like(spread), where=spread > 0)
    return value, error, value - error * least_ratio(skew, rows, total**2 / (weights**2).sum(axis=0), level)


def least_ratio(skew: np.ndarray, rows: int, alike: np.ndarray, level: float | np.ndarray) -> np.ndarray:
    """How many errors a gain must be above 0, [K]: q = 3 (1 - y) / c, y^3 = 1 - c (t + c/6), and no division by c."""
    c = np.maximum(0.0, -skew) / math.sqrt(rows)
    u = _student(level, np.maximum(alike - 1, 1.0)) + c / 6
    y = np.cbrt(1 - c * u)
    return 3 * u / (1 + y + y**2)


def _factor(rows: int, level: float) -> float:
    return float(_student(level, rows - 1)) + NormalDist().inv_cdf(POWER)


def _student(level: float | np.ndarray, freedom: float | np.ndarray) -> np.ndarray:
    """The t above which a share `level` of Student's distribution lies."""
    from scipy import stats  # no stage that trains needs it

    return stats.t.isf(level, freedom)
