"""The interval of a difference against published figures, and where it must be exact."""

import numpy as np
import pytest

from ajuste.learning.statistics.difference import Known, difference
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
