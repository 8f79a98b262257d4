"""Are two classifiers, judged on the same rows, equally often right? McNemar's test in its exact form (1947).

    b, c = rows that only the first has right, rows that only the second has right
    p = min(1, 2 P(X <= min(b, c))),   X ~ Binomial(b + c, 1/2)

If both were equally good, each row on which they differ would be a fair coin. Rows on which both are right, or both
wrong, say nothing about which is better.
"""

import math
from collections.abc import Sequence


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int, float]:
    """(b, c, p) of whether each was right on each row [N], in the same order. Raises ValueError for unequal lengths."""
    pairs = list(zip(first, second, strict=True))
    b, c = sum(x and not y for x, y in pairs), sum(y and not x for x, y in pairs)
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1))
    return b, c, min(1.0, 2 * tail / 2 ** (b + c))
