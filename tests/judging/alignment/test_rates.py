"""Rates of a red team: by brute force, by hand, and by how often their intervals hold the truth."""

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest

from ajuste.judging.alignment.rates import Known, corrected, hit_at_k, share


@pytest.mark.parametrize(("hits", "rows"), [(0, 24), (7, 24), (24, 24), (1, 1)])
def test_share_is_scipys_wilson(hits: int, rows: int) -> None:
    found, scipy = share(hits, rows), binomtest(hits, rows).proportion_ci(method="wilson")
    assert found == pytest.approx({"value": hits / rows, "low": scipy.low, "high": scipy.high}, abs=1e-12)


@pytest.mark.parametrize(("samples", "k"), [(4, 1), (4, 2), (4, 4), (6, 3)])
def test_hit_at_k_is_the_share_of_all_choices_of_k_samples(samples: int, k: int) -> None:
    hits = list(range(samples + 1))
    by_hand = []
    for c in hits:
        row = [i < c for i in range(samples)]
        chosen = list(itertools.combinations(row, k))
        by_hand.append(sum(any(some) for some in chosen) / len(chosen))
    assert hit_at_k(hits, samples, k, seed=0)["value"] == pytest.approx(np.mean(by_hand))


def test_hit_at_k_is_unbiased() -> None:
    p, samples, k = 0.3, 5, 3
    draws = np.random.default_rng(0).binomial(samples, p, 4000)
    assert hit_at_k(draws.tolist(), samples, k, seed=0)["value"] == pytest.approx(1 - (1 - p) ** k, abs=0.02)


def test_hit_at_k_has_an_interval_over_behaviours() -> None:
    found = hit_at_k([0, 4] * 10, 4, 2, seed=0)
    assert 0 < found["low"] < found["value"] == 0.5 < found["high"] < 1
    assert hit_at_k([0, 4] * 10, 4, 2, seed=0) == found
    assert hit_at_k([4] * 5, 4, 2, seed=0) == {"value": 1.0, "low": 1.0, "high": 1.0}


@pytest.mark.parametrize(("hits", "samples", "k"), [([], 4, 2), ([1], 4, 5), ([5], 4, 2), ([1], 4, 0)])
def test_hit_at_k_refuses_what_makes_no_sense(hits: list[int], samples: int, k: int) -> None:
    with pytest.raises(ValueError):
        hit_at_k(hits, samples, k, seed=0)


def test_corrected_by_hand() -> None:
    # a = 0.5, Se = 0.9, Sp = 0.8: (0.5 + 0.8 - 1) / (0.9 + 0.8 - 1) = 3/7
    found = corrected(50, 100, Known(90, 100, 80, 100))
    assert found["value"] == pytest.approx(3 / 7)
    assert 0 < found["low"] < 3 / 7 < found["high"] < 1


def test_a_nearly_perfect_judge_corrects_nearly_nothing() -> None:
    found, plain = corrected(30, 100, Known(10**6, 10**6, 10**6, 10**6)), share(30, 100)
    assert found["value"] == pytest.approx(0.3)
    assert (found["low"], found["high"]) == pytest.approx((plain["low"], plain["high"]), abs=0.01)


def test_a_judge_that_is_known_less_well_is_less_sure() -> None:
    wide, narrow = (corrected(50, 100, Known(9 * n, 10 * n, 8 * n, 10 * n)) for n in (1, 100))
    assert wide["high"] - wide["low"] > 1.3 * (narrow["high"] - narrow["low"])


@pytest.mark.parametrize("judge", [Known(5, 10, 5, 10), Known(1, 10, 2, 10), Known(0, 0, 9, 10), Known(9, 10, 0, 0)])
def test_a_judge_that_knows_nothing_corrects_nothing(judge: Known) -> None:
    assert corrected(5, 10, judge) is None


@pytest.mark.parametrize("hits", [0, 3, 10])
def test_corrected_stays_between_0_and_1(hits: int) -> None:
    found = corrected(hits, 10, Known(8, 10, 7, 10))
    assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1


@pytest.mark.parametrize("p", [0.05, 0.3, 0.7])
@pytest.mark.parametrize(("Se", "Sp"), [(0.95, 0.9), (0.8, 0.85)])
def test_95_of_100_intervals_hold_the_truth(p: float, Se: float, Sp: float) -> None:
    """Rows, positives and negatives drawn anew each time; Wilson of the raw share misses by the judge's errors."""
    rng, times, n, m = np.random.default_rng(1), 1500, 60, 80
    a = p * Se + (1 - p) * (1 - Sp)
    inside = 0
    for hits, seen, passed in zip(
        rng.binomial(n, a, times), rng.binomial(m, Se, times), rng.binomial(m, Sp, times), strict=True
    ):
        found = corrected(int(hits), n, Known(int(seen), m, int(passed), m))
        inside += found["low"] <= p <= found["high"]
    assert inside / times > 0.935


@pytest.mark.parametrize("of", [share, lambda hits, rows: corrected(hits, rows, Known(9, 10, 9, 10))])
def test_no_rows_are_no_share(of) -> None:
    with pytest.raises(ValueError, match="no rows"):
        of(0, 0)
