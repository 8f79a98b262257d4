"""Do probabilities mean what they say? The calibration error with an interval that holds.

    gap_b   = share right in bin b - mean confidence in bin b             BINS equal-width bins (low, high]
    theta   = sqrt(sum_b pi_b gap_b^2),  pi_b: share of all rows in bin b       the calibration error, root mean square
    T       = sum_b pi_b (gap_b^2 - v_b),  v_b = p_b (1 - p_b) / n_b            T is theta^2 without bias
    low, value, high = the theta at which T is the 97.5 %, 50 %, 2.5 % quantile of T'    T': simulated at that theta
    T >= the 16 % quantile of T' at theta = 0, by decree; where then nothing is below the 2.5 %: `low` at 95 %

It is the l2 error of Kumar et al. (2019). Against the usual l1 error, sum_b pi_b |gap_b| (Guo et al. 2017): both are
equal where all bins are off by as much, and l1 <= l2 always, so `high` bounds both. l1 stays as `plain_error`, a number
without an interval, for there can be no good one: |gap| has a corner at 0, so of few rows it reads the noise of every
bin as error (a perfect model of 888 rows shows 0.03), a resample of the rows adds the same noise once more (an interval
of that kind holds a true error of 0.01 never), and how much of it is noise no data tell (Cai and Low 2011). A square
has no corner: its bias is known whatever the gaps are, and their direction moves only the spread of T, a little.

T' = theta^2 (1 + spread) + 2 theta A + B: gaps theta d_b + binomial noise of n_b rows, with sum_b pi_b d_b^2 = 1. The
direction d is that of the gaps seen, drawn towards their mean by as much as they differ no more than noise would
(DerSimonian and Laird 1986). benchmarks/calibration.py measures how often the interval holds the truth.

Gaps that are smaller than chance leaves them, all 0 at the worst, are luck and prove no perfect model: of 60 rows as
little as ever. So no T counts for less than that of a perfect model with some luck, one of six (the power-constrained
limit of Cowan et al. 2011). Up to the theta that such a model reaches, `high` is then never too low, and all 5 % are
`low`'s.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

BINS = 15  # as in Guo et al. 2017
DRAWS = 2048  # of which a quantile of 2.5 % is off by 0.2 points
GRID = 100  # thetas between which it is interpolated
SIDES = (0.975, 0.5, 0.025)  # quantiles of T' that T is at `low`, `value` and `high`
ALONE = 0.95  # that of `low` where `high` cannot be too low
LUCKY = 0.16  # the quantile of T' at 0 that T is at least: one standard deviation below


@dataclass(frozen=True)
class Bins:
    """Rows by bin, empty bins left out, each [K]: rows (their weights), mean confidence, share right."""

    rows: np.ndarray
    confidence: np.ndarray
    right: np.ndarray


def bins_of(confidence: np.ndarray, right: np.ndarray, weights: np.ndarray | None = None) -> Bins:
    """confidence: [N] of the answer that was given, right: [N] whether it was right; weights: [N], None: all 1."""
    place = place_of(confidence)
    weights = np.ones(len(place)) if weights is None else weights
    rows = np.bincount(place, weights, minlength=BINS)
    there = rows > 0
    sums = [np.bincount(place, weights * values, minlength=BINS)[there] for values in (confidence, right)]
    return Bins(rows[there], sums[0] / rows[there], sums[1] / rows[there])


def place_of(confidence: np.ndarray) -> np.ndarray:
    """The bin of each confidence [N]: (0, 1/BINS], (1/BINS, 2/BINS], ..."""
    return np.clip(np.ceil(np.asarray(confidence, dtype=np.float64) * BINS).astype(int) - 1, 0, BINS - 1)


def calibration_error(bins: Bins) -> dict[str, float]:
    """{"value", "low", "high"}: the median-unbiased theta and its 95 % interval, each at least 0 and at most 1."""
    thetas = np.linspace(0.0, 1.0, GRID + 1) ** 2  # closer where they are small
    found, sides = _sides(bins, thetas)
    low, value, high = (np.interp(found, np.maximum.accumulate(side), thetas) for side in sides)
    return {"value": float(value), "low": float(low), "high": float(high)}


def holds(bins: Bins, theta: float) -> bool:
    """Whether the interval holds `theta`, up to its grid: T is no surprise if that is the error."""
    found, ((high,), _, (low,)) = _sides(bins, np.array([theta]))
    return bool(low <= found <= high)


def _sides(bins: Bins, thetas: np.ndarray) -> tuple[float, np.ndarray]:
    """(T as it counts, between which quantiles of T' it has to be at thetas [K]: [3, K], as SIDES)."""
    found, simulated = _simulated(bins)
    least = float(np.quantile(simulated(np.zeros(1)), LUCKY))
    alone, high, middle, low = np.quantile(simulated(thetas), (ALONE, *SIDES), axis=1)
    return max(found, least), np.stack([np.where(low < least, alone, high), middle, low])


def _simulated(bins: Bins) -> tuple[float, Callable[[np.ndarray], np.ndarray]]:
    """(T, what T would be: thetas [K] -> [K, DRAWS], by the same random numbers for all)."""
    share = bins.rows / bins.rows.sum()
    gap = bins.right - bins.confidence
    variance = _variance(bins, np.zeros_like(gap))
    for _ in range(2):
        likely = _shrunken(gap, variance)
        variance = _variance(bins, likely)
    scale = np.sqrt((share * likely**2).sum())
    direction = likely / scale if scale > 0 else np.ones_like(gap)
    noise = _noise()
    p = _chance(bins, likely)
    drawn = np.stack([_share(noise[:, k], round(rows), p[k]) for k, rows in enumerate(bins.rows)], axis=1) - p
    linear = drawn @ (share * direction)
    square = (drawn**2 - variance) @ share
    spread = np.sqrt(max(0.0, (share * direction**4).sum() - 1) / bins.rows.sum()) * _normal(noise[:, -1])

    def simulated(thetas: np.ndarray) -> np.ndarray:
        thetas = thetas[:, None]
        return thetas**2 * (1 + spread) + 2 * thetas * linear + square

    return float((share * (gap**2 - variance)).sum()), simulated


@cache
def _noise() -> np.ndarray:
    """Between 0 and 1 [DRAWS, BINS + 1], spread evenly (Sobol): as good as many more independent ones."""
    import torch  # here, since commands that only read figures start without it

    even = torch.quasirandom.SobolEngine(BINS + 1, scramble=True, seed=0).draw(DRAWS, dtype=torch.float64)
    return even.clamp(1e-9, 1 - 1e-9).numpy()


def _normal(even: np.ndarray) -> np.ndarray:
    import torch

    return torch.special.ndtri(torch.from_numpy(even)).numpy()


def _share(even: np.ndarray, rows: int, p: float) -> np.ndarray:
    """Shares right of so many rows, a Binomial's quantiles at `even` [DRAWS]: of few rows no normal distribution."""
    rows = max(rows, 1)
    k = np.arange(1, rows + 1)
    steps = np.log((rows - k + 1) / k) + math.log(p / (1 - p))
    log_p = np.concatenate([[0.0], np.cumsum(steps)]) + rows * math.log1p(-p)
    return np.searchsorted(np.cumsum(np.exp(log_p)), even) / rows


def plain_error(bins: Bins) -> float:
    """sum_b pi_b |gap_b|: the expected calibration error as it is mostly published; too large of few rows."""
    return float((bins.rows * np.abs(bins.right - bins.confidence)).sum() / bins.rows.sum())


def _chance(bins: Bins, gap: np.ndarray) -> np.ndarray:
    """Of a row of each bin to be right, were its true gap `gap`; never 0 or 1 for certain."""
    least = 0.25 / (bins.rows + 1)
    return np.clip(bins.confidence + gap, least, 1 - least)


def _variance(bins: Bins, gap: np.ndarray) -> np.ndarray:
    """Of each bin's share right, were its true gap `gap`."""
    p = _chance(bins, gap)
    return p * (1 - p) / bins.rows


def _shrunken(gap: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """The gaps, drawn towards their mean by DerSimonian and Laird's estimate of how much they truly differ."""
    weight = 1 / variance
    mean = (weight * gap).sum() / weight.sum()
    left = (weight * (gap - mean) ** 2).sum() - (len(gap) - 1)
    scale = weight.sum() - (weight**2).sum() / weight.sum()
    between = max(0.0, left / scale) if scale > 0 else 0.0
    return mean + between / (between + variance) * (gap - mean)
