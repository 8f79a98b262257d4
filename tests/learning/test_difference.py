"""The interval of a difference against published figures, and where it must be exact."""

import math

import numpy as np
import pytest

from ajuste.learning.statistics.difference import Known, difference, paired_shares
from ajuste.learning.statistics.metrics import wilson_interval


def share(k: int, n: int) -> Known:
    return Known(k / n, *wilson_interval(k, n))


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    [  # Newcombe 1998, table II, method 10
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((10, 10), (0, 10), 0.6075, 1.0000),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 10), -0.2775, 0.2775),
    ],
)
def test_newcombes_examples(one: tuple, other: tuple, low: float, high: float) -> None:
    found = difference(share(*one), share(*other))
    assert found.low == pytest.approx(low, abs=6e-5) and found.high == pytest.approx(high, abs=6e-5)


def test_turned_round_it_is_the_same_difference() -> None:
    one, other = share(12, 60), share(30, 50)
    there, back = difference(one, other), difference(other, one)
    assert there == pytest.approx((-back.value, -back.high, -back.low))


def test_it_covers_the_truth_of_independent_samples() -> None:
    rng = np.random.default_rng(0)
    pairs = zip(rng.binomial(60, 0.3, 2000), rng.binomial(40, 0.5, 2000), strict=True)
    found = [difference(share(int(a), 60), share(int(b), 40)) for a, b in pairs]
    covered = np.mean([one.low <= -0.2 <= one.high for one in found])
    assert 0.93 < covered < 0.98


def units(both: int, first: int, second: int, neither: int) -> tuple[list[bool], list[bool]]:
    return ([True] * (both + first) + [False] * (second + neither),
            [True] * both + [False] * first + [True] * second + [False] * neither)  # fmt: skip


def test_paired_shares_are_newcombes() -> None:
    found = paired_shares(*units(36, 12, 2, 0))  # Newcombe 1998, paired data, table III, method 10
    assert (found.low, found.high) == (pytest.approx(0.0569, abs=6e-5), pytest.approx(0.3404, abs=6e-5))
    assert paired_shares(*units(5, 0, 0, 9)) == (0.0, 0.0, 0.0)
    there, back = paired_shares(*units(8, 5, 2, 9)), paired_shares(*units(8, 2, 5, 9))
    assert there == pytest.approx((-back.value, -back.high, -back.low))
    with pytest.raises(ValueError, match="^shares of no units cannot be compared$"):
        paired_shares([], [])


def test_paired_shares_cover_the_truth_where_units_seldom_differ() -> None:
    rng = np.random.default_rng(1)
    kinds = rng.choice(4, size=(3000, 56), p=[0.35, 0.02, 0.07, 0.56])  # both, first, second, neither
    low = [paired_shares((row < 2).tolist(), ((row == 0) | (row == 2)).tolist()).low for row in kinds]
    above = np.mean(np.array(low) > -0.05 + 1e-12)
    assert above < 0.035, "one side of 95 %, two are 2.5 % each"


@pytest.mark.parametrize(
    ("counts", "one", "two", "phi"),
    [  # Newcombe's phi by hand: 8 x 9 - 5 x 2 = 62, less n / 2 = 12, over the root of 13 x 11 x 10 x 14
        ((8, 5, 2, 9), 13, 10, 50 / math.sqrt(20020)),
        ((1, 1, 0, 1), 2, 1, 0.0),  # 1 x 1 - 1 x 0 = 1, of which n / 2 = 1.5 leave nothing
        ((3, 1, 0, 0), 4, 3, 0.0),  # one share is whole: nothing can go together with it
        ((1, 3, 4, 2), 4, 5, -10 / math.sqrt(4 * 6 * 5 * 5)),  # 2 - 12, and below 0 nothing is taken off
    ],
)
def test_how_much_two_shares_go_together(counts: tuple, one: int, two: int, phi: float) -> None:
    n, found = sum(counts), paired_shares(*units(*counts))
    (a, b), (c, d) = wilson_interval(one, n), wilson_interval(two, n)
    down, up = one / n - a, b - one / n
    below, above = two / n - c, d - two / n
    value = (one - two) / n
    low = value - math.sqrt(down**2 - 2 * phi * down * above + above**2)
    high = value + math.sqrt(up**2 - 2 * phi * up * below + below**2)
    assert found == pytest.approx((value, low, high))
