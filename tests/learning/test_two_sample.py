"""Tests of two samples against scipy, brute force over every deal, and what they say with nothing to find."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from ajuste.learning.statistics import two_sample


def test_lengths_are_scipys_kolmogorov_smirnov() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=40), rng.normal(0.4, 1, size=55)
    D = max(abs((x <= t).mean() - (y <= t).mean()) for t in [*x, *y])
    found, p = two_sample.length_test(x, y)
    assert found == pytest.approx(D) and p == stats.ks_2samp(x, y).pvalue
    assert isinstance(found, float) and isinstance(p, float)


def pearson(table: np.ndarray) -> float:
    """p of the chi-squared test without any correction, from its sum."""
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    return float(stats.chi2.sf(((table - expected) ** 2 / expected).sum(), freedom))


def test_classes_by_the_chi_squared_sum() -> None:
    reference, window = np.array([50, 30, 20]), np.array([30, 10, 40])
    TV, p = two_sample.class_test(reference, window)
    assert TV == pytest.approx((abs(0.5 - 0.375) + abs(0.3 - 0.125) + abs(0.2 - 0.5)) / 2)
    assert p == pytest.approx(pearson(np.stack([reference, window])))
    two = np.array([[60, 40], [30, 50]])  # two classes, both frequent: no correction, no Fisher
    assert two_sample.class_test(*two)[1] == pytest.approx(pearson(two))
    assert isinstance(TV, float) and isinstance(p, float)


def test_rare_classes_are_joined_and_two_of_which_one_is_rare_are_fishers() -> None:
    # expected in the smaller sample (80 of 200): 0.4 * (100, 92, 4, 4) -> the last two are joined
    reference, window = np.array([60, 55, 2, 3]), np.array([40, 37, 2, 1])
    joined = np.array([[60, 55, 5], [40, 37, 3]])
    assert two_sample.class_test(reference, window)[1] == pytest.approx(pearson(joined))
    # a class that neither has is none; one that a single row has is one
    reference, window = np.array([50, 50, 0]), np.array([40, 60, 0])
    assert two_sample.class_test(reference, window)[1] == pytest.approx(stats.fisher_exact([[50, 50], [40, 60]]).pvalue)
    single = np.array([[60, 55, 1], [40, 37, 0]])
    assert two_sample.class_test(*single)[1] == pytest.approx(pearson(single))
    reference, window = np.array([100, 3]), np.array([60, 9])
    assert two_sample.class_test(reference, window)[1] == pytest.approx(stats.fisher_exact([[100, 3], [60, 9]]).pvalue)
    # exactly five expected is not rare: 50 of 100 rows in each, ten of a class
    edge = np.array([[44, 6], [46, 4]])
    assert two_sample.class_test(*edge)[1] == pytest.approx(pearson(edge))
    just = np.array([[45, 5], [46, 4]])  # 4.5: rare, and Fisher's
    assert two_sample.class_test(*just)[1] == pytest.approx(stats.fisher_exact(just).pvalue)


def test_a_single_class_says_nothing() -> None:
    assert two_sample.class_test(np.array([10, 0]), np.array([20, 0])) == (0.0, 1.0)
    assert two_sample.class_test(np.array([2, 1]), np.array([1, 2])) == (pytest.approx(1 / 3), 1.0)  # all too rare


def every_deal(n: int, m: int) -> np.ndarray:
    return np.array([[float(i in group) for i in range(n + m)] for group in itertools.combinations(range(n + m), n)])


def test_a_deal_gives_n_rows_to_the_first_group_and_each_deal_is_as_likely() -> None:
    assert two_sample.observed(2, 3).tolist() == [[1, 1, 0, 0, 0]]
    dealt = two_sample.deals(2, 3, 5000, 7)
    assert dealt.shape == (5000, 5) and (dealt.sum(1) == 2).all() and set(dealt.flatten()) == {0.0, 1.0}
    _, counts = np.unique(dealt, axis=0, return_counts=True)
    assert len(counts) == math.comb(5, 2) and stats.chisquare(counts).pvalue > 1e-3
    assert np.array_equal(dealt, two_sample.deals(2, 3, 5000, 7))
    assert not np.array_equal(dealt, two_sample.deals(2, 3, 5000, 8))


def test_shares_of_words_by_every_deal(monkeypatch: pytest.MonkeyPatch) -> None:
    hits, words = np.array([1, 0, 2, 3, 5, 4]), np.array([10, 20, 11, 12, 13, 7])
    reference, window = (hits[:3], words[:3]), (hits[3:], words[3:])
    expected = hits[3:].sum() / words[3:].sum() - hits[:3].sum() / words[:3].sum()
    deals = every_deal(3, 3)
    both = [hits[d == 0].sum() / words[d == 0].sum() - hits[d == 1].sum() / words[d == 1].sum() for d in deals]
    p = (1 + sum(abs(x) >= abs(expected) - 1e-12 for x in both)) / (len(deals) + 1)
    asked = []
    monkeypatch.setattr(two_sample, "deals", lambda *of: asked.append(of) or deals)
    assert two_sample.share_test(reference, window, 20, 3) == (pytest.approx(expected), pytest.approx(p))
    assert asked == [(3, 3, 20, 3)]


def test_a_share_that_falls_is_negative_and_as_unlikely() -> None:
    low, high = (np.zeros(30), np.full(30, 10)), (np.full(20, 5), np.full(20, 10))
    up, p_up = two_sample.share_test(low, high, 200, 0)
    down, p_down = two_sample.share_test(high, low, 200, 0)
    assert up == 0.5 and down == -0.5 and p_up == p_down == 1 / 201
    nothing = (np.zeros(2), np.zeros(2))  # texts without words
    assert two_sample.share_test(nothing, nothing, 20, 0) == (0.0, 1.0)
    one = (np.array([1, 0]), np.array([1, 0]))  # a word in one text alone: its group has all
    assert two_sample.share_test(one, nothing, 20, 0)[0] == -1.0
    assert two_sample.share_test(nothing, one, 20, 0)[0] == 1.0


def energy(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """E and E|X-Y|, over pairs of different rows, in loops."""
    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return math.sqrt(sum((u - v) ** 2 for u, v in zip(a, b, strict=True)))

    across = np.mean([distance(a, b) for a in x for b in y])
    within = [np.mean([distance(a, b) for a, b in itertools.permutations(rows, 2)]) for rows in (x, y)]
    return 2 * across - sum(within), across


def test_energy_by_loops_and_every_deal(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(3, 2)), rng.normal(1.5, 1, size=(4, 2))
    E, across = energy(x, y)
    rows, deals = np.concatenate([x, y]), every_deal(3, 4)
    p = (1 + sum(energy(rows[d == 1], rows[d == 0])[0] >= E - 1e-9 for d in deals)) / (len(deals) + 1)
    asked = []
    monkeypatch.setattr(two_sample, "deals", lambda *of: asked.append(of) or deals)
    assert two_sample.energy_test(x, y, 35, 4) == (pytest.approx(E / (2 * across)), pytest.approx(p))
    assert asked == [(3, 4, 35, 4)]


def test_energy_of_one_point_and_of_two() -> None:
    same = np.ones((5, 3))
    assert two_sample.energy_test(same, same, 20, 0) == (0.0, 1.0)
    H, p = two_sample.energy_test(np.zeros((8, 2)), np.ones((8, 2)), 300, 0)
    assert H == pytest.approx(1.0) and p <= 3 / 301
    H, p = two_sample.energy_test(*(np.random.default_rng(s).normal(size=(200, 2)) for s in (0, 1)), 200, 0)
    assert abs(H) < 0.02 and p > 0.01


def test_float32_embeddings_are_summed_in_float64() -> None:
    x = (np.random.default_rng(2).normal(size=(20, 4)) + 1000).astype(np.float32)
    y = (np.random.default_rng(3).normal(size=(20, 4)) + 1000).astype(np.float32)
    E, across = energy(x.astype(float), y.astype(float))
    assert two_sample.energy_test(x, y, 9, 0)[0] == pytest.approx(E / (2 * across), rel=1e-9)


def test_holm_and_benjamini_hochberg_by_hand() -> None:
    """Sorted .01 .02 .03 .04: Holm times 4 3 2 1, never falling; Benjamini and Hochberg times 4/1 4/2 4/3 4/4, from
    the top never rising."""
    assert two_sample.corrected([0.04, 0.01, 0.03, 0.02], "holm") == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert two_sample.corrected([0.04, 0.01, 0.03, 0.2], "bh") == pytest.approx([0.16 / 3, 0.04, 0.16 / 3, 0.2])
    assert two_sample.corrected([0.5, 0.9], "holm") == [1.0, 1.0] and two_sample.corrected([], "holm") == []
    assert two_sample.corrected([0.3], "holm") == [0.3] and two_sample.corrected([0.9, 0.6], "holm") == [1.0, 1.0]
