"""Agreement of raters against its definition in plain loops, and against closed forms."""

import math
import random
from itertools import combinations
from statistics import fmean

import numpy as np
import pytest

from ajuste.learning.statistics.agreement import agreement, by_margin, one_against_rest, split_half


def win(x: float, y: float) -> float:
    return 1.0 if x > y else 0.5 if x == y else 0.0


def same(u: float, v: float) -> float:
    return 0.5 if u * v == 0 else float(u * v > 0)


def raters(seed: int) -> tuple[list[int], list[int]]:
    generator = random.Random(seed)
    return tuple([generator.randint(-4, 4) for _ in range(generator.randint(2, 9))] for _ in range(2))


@pytest.mark.parametrize("seed", range(20))
def test_figures_equal_their_definitions(seed):
    a, b = raters(seed)
    assert agreement(a, b) == pytest.approx(fmean(win(x, y) for x in a for y in b), abs=1e-12)
    assert agreement(a, b) + agreement(b, a) == pytest.approx(1.0)
    expected = []
    for i in range(len(a)):
        for j in range(len(b)):
            rest = fmean(a[:i] + a[i + 1 :]) - fmean(b[:j] + b[j + 1 :])
            expected.append(same(a[i] - b[j], 0.0 if abs(rest) < 1e-9 else rest))
    assert one_against_rest(a, b) == pytest.approx(fmean(expected), abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_split_half_is_the_mean_over_all_splits(seed, monkeypatch):
    generator = random.Random(seed)
    a, b = ([generator.randint(-4, 4) for _ in range(size)] for size in (4, 5))

    def halves(ratings: list[int]):
        half = len(ratings) // 2
        for first in combinations(range(len(ratings)), half):
            rest = [i for i in range(len(ratings)) if i not in first]
            for second in combinations(rest, half):
                yield fmean(ratings[i] for i in first), fmean(ratings[i] for i in second)

    def sign(value: float) -> float:
        return 0.0 if abs(value) < 1e-9 else value

    exact = fmean(same(sign(x1 - y1), sign(x2 - y2)) for x1, x2 in halves(a) for y1, y2 in halves(b))
    monkeypatch.setattr("ajuste.learning.statistics.agreement.SPLITS", 40_000)
    assert split_half(a, b, np.random.default_rng(0)) == pytest.approx(exact, abs=0.012)


def test_sure_and_unsure_pairs():
    assert agreement([3, 3], [1, 2]) == one_against_rest([3, 3], [1, 2]) == 1.0
    assert split_half([3, 3], [1, 2], np.random.default_rng(0)) == 1.0
    assert agreement([1, 2], [1, 2]) == 0.5
    assert one_against_rest([1], [2, 3]) is None and split_half([1], [2, 3], np.random.default_rng(0)) is None


def test_ratings_of_unsigned_bytes_are_numbers_like_others():
    """1 - 2 is 255 among bytes."""
    low, high = np.array([1, 2, 1], np.uint8), np.array([2, 3, 3], np.uint8)
    assert agreement(low, high) == pytest.approx(0.5 / 9)
    assert one_against_rest(high, low) == one_against_rest(high.tolist(), low.tolist())
    draws = (np.random.default_rng(0) for _ in range(2))
    assert split_half(low, high, next(draws)) == split_half(low.tolist(), high.tolist(), next(draws))


def test_people_of_known_noise_agree_as_often_as_theory_says():
    """Raters N(mu, 1): win has chance Phi(mu / sqrt 2) (continuous, so no ties)."""
    generator = np.random.default_rng(0)
    found = np.mean([agreement(generator.normal(1, 1, 20), generator.normal(0, 1, 20)) for _ in range(400)])
    assert found == pytest.approx(0.5 * (1 + math.erf(1 / math.sqrt(2) / math.sqrt(2))), abs=0.01)


def test_by_margin_counts_pairs_of_at_least_the_margin():
    margins, ones = np.array([0.4, 0.5, 1.2, 3.0, 2.0]), np.array([0.1, 0.6, 0.7, 1.0, np.nan])
    rows = by_margin(margins, ones, ones / 2)
    assert [row["pairs"] for row in rows] == [3, 2, 1, 1] and [row["margin"] for row in rows] == [0.5, 1.0, 1.5, 2.5]
    assert rows[0]["one_against_rest"] == pytest.approx(2.3 / 3, abs=1e-6)
    assert rows[3] == {"margin": 2.5, "pairs": 1, "one_against_rest": 1.0, "split_half": 0.5}
    assert by_margin(margins[:1], ones[:1], ones[:1])[0]["one_against_rest"] is None
    third = by_margin(np.ones(3), np.array([1.0, 0.0, 0.0]), np.array([1.0, 1.0, 0.0]))[0]
    assert (third["one_against_rest"], third["split_half"]) == (0.333333, 0.666667)  # six digits are written
