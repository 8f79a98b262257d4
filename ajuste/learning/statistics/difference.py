"""The difference of two figures of which only the intervals are known, and of two shares of the same units.

    theta = a - b,   a in [a_low, a_high], b in [b_low, b_high], each at the same level
    low  = theta - sqrt((a - a_low)^2 + (b_high - b)^2)
    high = theta + sqrt((a_high - a)^2 + (b - b_low)^2)

Newcombe's hybrid score interval (1998, method 10) where both are Wilson's intervals of shares; Zou and Donner (2008)
for any two (MOVER). It takes a and b as independent. Two models that answered the same questions are not: what is hard
is hard for both, so for them this interval is too wide, and a paired one is better where the answers are known:

    low = theta - sqrt((a - a_low)^2 + (b_high - b)^2 - 2 phi (a - a_low) (b_high - b))        high likewise
    phi = max(0, n11 n00 - n10 n01 - n/2) / sqrt(n1. n0. n.1 n.0)       of n units, n10 of which only a has; a negative
                                                                        correlation is taken as it is

for shares, Newcombe's method 10 of his paper on paired data (1998); paired.py is for all else. A mean's bound rests on
the spread that was seen, and of units that hardly ever differ, two of sixty, say, too little was seen.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from ajuste.learning.statistics.metrics import wilson_interval


class Known(NamedTuple):
    """A figure with its interval."""

    value: float
    low: float
    high: float


def difference(a: Known, b: Known) -> Known:
    """a - b with its interval, at the level of theirs."""
    theta = a.value - b.value
    return Known(theta, theta - math.hypot(a.value - a.low, b.high - b.value),
                 theta + math.hypot(a.high - a.value, b.value - b.low))


def paired_shares(a: Sequence[bool], b: Sequence[bool]) -> Known:
    """The difference of two shares of the same units, in the same order, with its 95 % interval.

    Where no unit differs it is exactly 0: the two did the same. Raises ValueError without a unit.
    """
    n, both = len(a), sum(x and y for x, y in zip(a, b, strict=True))
    if not n:
        raise ValueError("shares of no units cannot be compared")
    if list(a) == list(b):
        return Known(0.0, 0.0, 0.0)
    one, two = sum(a), sum(b)
    over = both * (n - one - two + both) - (one - both) * (two - both)
    over = max(0.0, over - n / 2) if over > 0 else over
    under = math.sqrt(one * (n - one) * two * (n - two))
    phi = over / under if under else 0.0
    (a_low, a_high), (b_low, b_high) = wilson_interval(one, n), wilson_interval(two, n)
    p, q = one / n, two / n
    return Known(p - q, p - q - _joined(p - a_low, b_high - q, phi), p - q + _joined(a_high - p, q - b_low, phi))


def _joined(left: float, right: float, phi: float) -> float:
    return math.sqrt(max(0.0, left**2 + right**2 - 2 * phi * left * right))
