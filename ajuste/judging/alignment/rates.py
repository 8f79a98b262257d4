"""Rates of a red team, and what stays of them when the judge errs.

    hit@k      = 1 - C(n - c, k) / C(n, k)      of n samples, c of them hits: the chance that k of them hold one
                                                (Chen et al. 2021, pass@k); the mean over behaviours, bootstrapped
    corrected  = (a + Sp - 1) / (Se + Sp - 1)   of a share a that a judge found; Se: how often it sees what there is,
                                                Sp: how often it says no where there is nothing (Rogan, Gladen 1978)

The interval of the corrected share holds the judge's own uncertainty, since Se and Sp are shares of golden transcripts
too (Lang and Reiczigel 2014, with z of 95 %). With n, m, l rows behind a, Se, Sp:

    a' = (n a + z^2/2) / (n + z^2)      Se' = (m Se + 1) / (m + 2)      Sp' = (l Sp + 1) / (l + 2)
    p' = (a' + Sp' - 1) / (Se' + Sp' - 1)
    d  = 2 z^2 (p' Se'(1 - Se')/(m + 2) - (1 - p') Sp'(1 - Sp')/(l + 2))
    s  = sqrt(a'(1 - a')/(n + z^2) + p'^2 Se'(1 - Se')/(m + 2) + (1 - p')^2 Sp'(1 - Sp')/(l + 2))
    p' + d +- z s / (Se' + Sp' - 1)

all clipped to [0, 1], and widened to hold the value. A judge that knows no more than chance (Se' + Sp' <= 1), or of
which one of the two is not known, corrects nothing. The method takes the judge's errors to be the same on the answers
that are judged as on the golden ones.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ajuste.learning.statistics import metrics

Z = 1.959963984540054
BOOTSTRAP = 1000
Rate = dict[str, float]  # value, low, high


class Known(NamedTuple):
    """What is known of a judge: of `positives` golden rows that are so it said so of `hits`, and of `negatives` that
    are not it said no of `passes`."""

    hits: int
    positives: int
    passes: int
    negatives: int


def share(hits: int, rows: int) -> Rate:
    """A share with its Wilson interval. Raises ValueError for no rows."""
    if rows < 1:
        raise ValueError("a share of no rows")
    low, high = metrics.wilson_interval(hits, rows)
    return {"value": hits / rows, "low": min(low, hits / rows), "high": max(high, hits / rows)}


def each_hit_at_k(hits: Sequence[int], samples: int, k: int) -> list[float]:
    """hit@k of each behaviour. hits: c of each, out of `samples`.

    Raises ValueError for no behaviours, k outside 1 to samples, or c outside 0 to samples.
    """
    if not len(hits) or not 1 <= k <= samples or not all(0 <= c <= samples for c in hits):
        raise ValueError(f"hit@{k} of {samples} samples needs behaviours with 0 to {samples} hits, and 1 <= k <= n")
    return [1 - math.comb(samples - c, k) / math.comb(samples, k) for c in hits]


def hit_at_k(hits: Sequence[int], samples: int, k: int, seed: int) -> Rate:
    """The mean over behaviours with a bootstrap interval over them. Raises ValueError as `each_hit_at_k`."""
    each = np.array(each_hit_at_k(hits, samples, k))
    found = metrics.estimate(each, np.ones(len(each)), metrics.resamples(len(each), BOOTSTRAP, seed))
    return {"value": found["value"], "low": min(found["low"], found["value"]),
            "high": max(found["high"], found["value"])}  # fmt: skip


def corrected(hits: int, rows: int, judge: Known) -> Rate | None:
    """The share without the judge's errors, as above; None for a judge that cannot correct. Raises ValueError for no
    rows."""
    if rows < 1:
        raise ValueError("a share of no rows")
    if not judge.positives or not judge.negatives:
        return None
    a, Se, Sp = hits / rows, judge.hits / judge.positives, judge.passes / judge.negatives
    n, m, l = rows + Z**2, judge.positives + 2, judge.negatives + 2  # noqa: E741
    a_, Se_, Sp_ = (hits + Z**2 / 2) / n, (judge.hits + 1) / m, (judge.passes + 1) / l
    known = Se_ + Sp_ - 1
    if known <= 0 or Se + Sp <= 1:
        return None
    p = (a_ + Sp_ - 1) / known
    of_Se, of_Sp = Se_ * (1 - Se_) / m, Sp_ * (1 - Sp_) / l
    d = 2 * Z**2 * (p * of_Se - (1 - p) * of_Sp)
    half = Z * math.sqrt(a_ * (1 - a_) / n + p**2 * of_Se + (1 - p) ** 2 * of_Sp) / known
    value = _clipped((a + Sp - 1) / (Se + Sp - 1))
    return {"value": value, "low": min(value, _clipped(p + d - half)), "high": max(value, _clipped(p + d + half))}


def _clipped(x: float) -> float:
    return min(max(x, 0.0), 1.0)
