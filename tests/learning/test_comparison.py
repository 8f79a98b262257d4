"""The paired bootstrap beside scipy's, the closed form, and what it promises with no true difference."""

import numpy as np
import pytest
from scipy import stats

from ajuste.learning.statistics.paired import gain, lower_bounds
from benchmarks import gate as simulated


def test_the_bound_is_scipys_and_the_normal_ones() -> None:
    rng = np.random.default_rng(0)
    d = rng.choice([-1.0, 0.0, 1.0], size=400, p=[0.1, 0.7, 0.2])
    found = gain(d)
    other = stats.bootstrap((d,), np.mean, n_resamples=4000, confidence_level=0.95, method="percentile", rng=rng)
    error = d.std(ddof=1) / np.sqrt(len(d))
    assert found.value == d.mean() and found.rows == 400
    assert abs(found.lower - other.confidence_interval.low) < 0.1 * error
    assert abs(found.lower - (d.mean() + stats.norm.ppf(0.025) * error)) < 0.1 * error


def test_rows_count_by_their_tokens() -> None:
    rng = np.random.default_rng(1)
    tokens = rng.integers(5, 200, 300).astype(float)
    d = tokens * rng.normal(0.05, 0.3, 300)
    found = gain(d, tokens)
    ratio = d.sum() / tokens.sum()
    error = np.sqrt(((d - ratio * tokens) ** 2).sum()) / tokens.sum()  # the delta method
    assert found.value == pytest.approx(ratio)
    assert abs(found.lower - (ratio + stats.norm.ppf(0.025) * error)) < 0.15 * error
    assert gain(3 * d, 3 * tokens).lower == pytest.approx(found.lower), "the unit of a weight does not matter"


def test_few_rows_by_every_possible_resample() -> None:
    from itertools import product

    d = np.array([0.0, 1.0, 1.0, -1.0, 1.0])
    every = np.array([np.mean(draw) for draw in product(d, repeat=5)])
    assert gain(d).lower == pytest.approx(np.percentile(every, 2.5), abs=0.21)  # the means are 0.2 apart


def test_equal_models_and_a_shift() -> None:
    assert gain(np.zeros(50)).lower == 0.0, "equal is not better"
    assert gain(np.full(50, 0.25)).lower == pytest.approx(0.25)
    d = np.random.default_rng(2).normal(0, 1, 60)
    assert gain(d).lower == gain(d).lower and gain(d + 1).lower == pytest.approx(gain(d).lower + 1)
    both = lower_bounds(np.stack([d, d + 1], axis=1), np.ones((60, 1)))
    assert both.tolist() == pytest.approx([gain(d).lower, gain(d).lower + 1])


@pytest.mark.parametrize("d, weights, said", [
    ([1.0], None, "at least 2"), ([], None, "at least 2"), ([1.0, 2.0], [1.0], "one number a row"),
    ([1.0, float("nan")], None, "no finite number"), ([1.0, 2.0], [1.0, 0.0], "not above 0"),
])  # fmt: skip
def test_what_cannot_be_compared(d: list, weights: list | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        gain(np.array(d), None if weights is None else np.array(weights))


def test_no_true_difference_is_promoted_in_at_most_4_percent_and_5_points_are_seen() -> None:
    assert 5 <= simulated.accuracy(888, 0.6, seed=1, comparisons=1000) <= 40
    assert 5 <= simulated.loss(102, seed=1, comparisons=1000) <= 40
    assert simulated.accuracy(888, 0.6, better=0.05, seed=1, comparisons=100) >= 90


def test_the_simulated_models_are_what_they_say() -> None:
    d = simulated.right_or_wrong(200_000, 0.6, 0.02, np.random.default_rng(0))
    pa, pb = 0.82, 0.80
    covariance = 0.6 * np.sqrt(pa * (1 - pa) * pb * (1 - pb))
    assert d.mean() == pytest.approx(0.02, abs=0.004)
    assert d.var() == pytest.approx(pa * (1 - pa) + pb * (1 - pb) - 2 * covariance, rel=0.03)
