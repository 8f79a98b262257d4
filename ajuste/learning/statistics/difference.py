"""The difference of two independent figures of which only the intervals are known.

    theta = a - b,   a in [a_low, a_high], b in [b_low, b_high], each at the same level
    low  = theta - sqrt((a - a_low)^2 + (b_high - b)^2)
    high = theta + sqrt((a_high - a)^2 + (b - b_low)^2)

Newcombe's hybrid score interval (1998, method 10) where both are Wilson's intervals of shares; Zou and Donner (2008)
for any two (MOVER). It takes a and b as independent. Two models that answered the same questions are not: what is hard
is hard for both, so for them this interval is too wide, and a paired one (paired.py) is better where the answers are
known.
"""

import math
from typing import NamedTuple


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
