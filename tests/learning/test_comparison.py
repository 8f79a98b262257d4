"""The paired bound beside scipy's test and bootstrap, and what it promises with no true difference."""

import numpy as np
import pytest
from scipy import optimize, stats

from ajuste.learning.statistics.paired import Gain, bounds, gain, least_ratio, together
from benchmarks import gate as simulated


def test_the_bound_is_students_and_the_bootstraps() -> None:
    rng = np.random.default_rng(0)
    d = rng.choice([-1.0, 0.0, 1.0], size=400, p=[0.1, 0.7, 0.2])
    found = gain(d)
    other = stats.bootstrap((d,), np.mean, n_resamples=4000, confidence_level=0.95, method="BCa", rng=rng)
    assert found.value == d.mean() and found.rows == found.clusters == 400
    assert found.error == pytest.approx(stats.sem(d))
    assert abs(found.lower - other.confidence_interval.low) < 0.15 * found.error
    even = np.r_[d - d.mean(), d.mean() - d] + 0.1  # nothing is skewed
    assert gain(even, level=1e-4).lower == pytest.approx(0.1 - stats.t.isf(1e-4, 799) * stats.sem(even))
    assert gain(even, level=0.01).lower == pytest.approx(
        stats.ttest_1samp(even, 0, alternative="greater").confidence_interval(0.99).low)


def test_rare_large_losses_cost_more_than_rare_large_gains() -> None:
    """Hall's correction: only a tail on the side of a loss is counted."""
    d = np.random.default_rng(5).exponential(size=50)
    t = stats.t.isf(0.025, 49)
    assert gain(d).lower == pytest.approx(d.mean() - t * stats.sem(d))
    assert gain(-d).lower == pytest.approx(-d.mean() - errors(t, -stats.skew(d), 50) * stats.sem(d))


def errors(t: float, skew: float, rows: int) -> float:
    """Where Hall's cubic of a negative skewness is t, by a search."""
    c = -skew / rows**0.5
    return optimize.brentq(lambda q: q - c * (q**2 / 3 + 1 / 6) + c**2 * q**3 / 27 - t, 0.0, 1e4, xtol=1e-13)


@pytest.mark.parametrize("level", [0.025, 1e-5])
@pytest.mark.parametrize("skew", [-1e-9, -0.2, -1.5, -4.0])
def test_the_correction_is_the_root_of_its_cubic_and_rises_with_the_tail(skew: float, level: float) -> None:
    found = least_ratio(np.array([skew]), 30, np.array([25.0]), level)[0]
    t = stats.t.isf(level, 24)
    assert found == pytest.approx(errors(t, skew, 30)) and found > t
    first = t - skew / 30**0.5 * (2 * t**2 + 1) / 6  # Johnson's: what remains of it where the skewness is small
    assert skew < -0.5 or found == pytest.approx(first, rel=0.01)


def test_of_thirty_rows_with_a_tail_of_losses_few_are_promoted() -> None:
    """1 - an exponential: mean 0, skewness -2. At most 4 % pass at 2.5 %; by Student's own bound more than 5.5 %."""
    assert 0.025 <= simulated.tail(30, seed=0, number=20_000) <= 0.038
    d = 1 - np.random.default_rng(0).exponential(size=(30, 20_000))
    assert (stats.ttest_1samp(d, 0, alternative="greater").pvalue < 0.025).mean() > 0.055


def test_rows_count_by_their_tokens() -> None:
    rng = np.random.default_rng(1)
    tokens = rng.integers(5, 200, 300).astype(float)
    d = tokens * rng.normal(0.05, 0.3, 300)
    found = gain(d, tokens)
    draws = rng.integers(0, 300, (4000, 300))
    means = d[draws].sum(1) / tokens[draws].sum(1)
    assert found.value == pytest.approx(d.sum() / tokens.sum())
    assert found.error == pytest.approx(means.std(), rel=0.06)
    assert abs(found.lower - np.percentile(means, 2.5)) < 0.2 * found.error
    assert gain(3 * d, 3 * tokens).lower == pytest.approx(found.lower), "the unit of a weight does not matter"


def test_clusters_by_brute_force_over_resampled_sources() -> None:
    rng = np.random.default_rng(3)
    of = rng.integers(0, 60, 400)
    d = 0.05 + 0.5 * rng.normal(size=60)[of] + 0.3 * rng.normal(size=400)
    tokens = rng.integers(5, 50, 400).astype(float)
    rows = [np.flatnonzero(of == cluster) for cluster in range(60)]
    drawn = []
    for _ in range(3000):
        chosen = np.concatenate([rows[cluster] for cluster in rng.integers(0, 60, 60)])
        drawn.append((d * tokens)[chosen].sum() / tokens[chosen].sum())
    found = gain(d * tokens, tokens, clusters=of.tolist())
    assert (found.rows, found.clusters) == (400, 60)
    assert found.error == pytest.approx(np.std(drawn), rel=0.08)
    assert abs(found.lower - np.percentile(drawn, 2.5)) < 0.25 * found.error
    assert found.error > 1.8 * gain(d * tokens, tokens).error, "rows of one source say the same"
    assert gain(d, clusters=range(400)) == gain(d), "each row alone is no clustering"
    assert together(np.array([1.0, 2.0, 4.0]), ["a", "b", "a"]).tolist() == [5.0, 2.0]


def test_equal_models_and_a_shift() -> None:
    assert gain(np.zeros(50)).lower == 0.0, "equal is not better"
    assert gain(np.full(50, 0.25)).lower == pytest.approx(0.25)
    d = np.random.default_rng(2).normal(0, 1, 60)
    assert gain(d + 1).lower == pytest.approx(gain(d).lower + 1)
    both = bounds(np.stack([d, d + 1], axis=1), np.ones((60, 1)), 0.025)[2]
    assert both.tolist() == pytest.approx([gain(d).lower, gain(d).lower + 1])
    weights = np.stack([np.ones(60), np.arange(1.0, 61.0)], axis=1)
    both = np.stack(bounds(np.stack([d, d], axis=1), weights, 0.025), axis=1)
    alone = [gain(d, weights[:, k]) for k in (0, 1)]
    assert both.ravel().tolist() == pytest.approx([x for g in alone for x in (g.value, g.error, g.lower)])
    levels = bounds(np.stack([d, d], axis=1), np.ones((60, 1)), np.array([0.025, 0.001]))[2]
    assert levels.tolist() == pytest.approx([gain(d).lower, gain(d, level=0.001).lower])


@pytest.mark.parametrize("d, weights, said", [
    ([1.0], None, "at least 2"), ([], None, "at least 2"), ([1.0, 2.0], [1.0], "one number a row"),
    ([1.0, float("nan")], None, "no finite number"), ([1.0, 2.0], [1.0, 0.0], "not above 0"),
])  # fmt: skip
def test_what_cannot_be_compared(d: list, weights: list | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        gain(np.array(d), None if weights is None else np.array(weights))


def test_all_rows_of_one_source_and_clusters_of_other_rows() -> None:
    with pytest.raises(ValueError, match="all 3 rows share one source"):
        gain(np.array([1.0, 2.0, 3.0]), clusters=["a"] * 3)
    with pytest.raises(ValueError, match="2 clusters of 3 rows"):
        gain(np.array([1.0, 2.0, 3.0]), clusters=["a", "b"])
    assert gain(np.array([1.0, 2.0, 3.0]), clusters=["a", "b", "b"]).clusters == 2, "two sources are enough"


def test_no_true_difference_is_promoted_in_at_most_4_percent_and_5_points_are_seen() -> None:
    """2,000 comparisons of 30 rows, the least that the gate takes: right or wrong, and losses with heavy tails."""
    assert 0.01 <= simulated.accuracy(30, 0.3, seed=1, number=2000) <= 0.04
    assert 0.01 <= simulated.loss(30, seed=1, number=2000) <= 0.04
    assert 0.01 <= simulated.loss(30, seed=1, number=2000, heavy=True) <= 0.04
    assert 0.01 <= simulated.accuracy(888, 0.6, seed=1, number=1000) <= 0.04
    assert simulated.accuracy(888, 0.6, better=0.05, seed=1, number=100) >= 0.9


def test_the_gain_that_these_rows_show_is_found_in_80_percent() -> None:
    """The closed forms of `seen` and `rows_for`, by simulation at the level of a late look."""
    rng = np.random.default_rng(0)
    level, some = 1e-3, simulated.right_or_wrong(888, 0.6, 0.05, 200, rng)
    found = Gain(0.05, 0.0, 888, 888, float(bounds(some, np.ones((888, 1)), level)[1].mean()), level)
    seen = simulated.accuracy(888, 0.6, better=found.seen, seed=2, number=1000, level=level)
    assert seen == pytest.approx(0.8, abs=0.06)
    rows = found.rows_for(0.03)
    assert rows == pytest.approx(888 * (found.seen / 0.03) ** 2, abs=1)
    assert simulated.accuracy(rows, 0.6, better=0.03, seed=3, number=1000, level=level) == pytest.approx(0.8, abs=0.06)


def test_equal_challengers_all_year_are_seldom_promoted_and_better_ones_are() -> None:
    """A few years in miniature: 200 rows, where a look alone would promote one of forty."""
    assert (simulated.nights(200, 0.6, 0.0, 12, seed=1) <= simulated.NIGHTS).sum() <= 2
    assert np.median(simulated.nights(200, 0.6, 0.15, 12, seed=1)) <= 3
    free = np.full(simulated.NIGHTS, 0.025)  # the control: no budget
    assert (simulated.nights(200, 0.6, 0.0, 12, seed=1, levels=free) <= simulated.NIGHTS).sum() >= 4


def test_the_bound_from_counts_is_the_bound() -> None:
    d = simulated.right_or_wrong(90, 0.5, 0.05, 20, np.random.default_rng(1))
    level = np.geomspace(0.025, 1e-5, 20)
    found = simulated._lower((d > 0).sum(axis=0).astype(float), (d < 0).sum(axis=0).astype(float), 90, level)
    assert found == pytest.approx(bounds(d, np.ones((90, 1)), level)[2])


def test_the_simulated_models_are_what_they_say() -> None:
    d = simulated.right_or_wrong(200_000, 0.6, 0.02, 1, np.random.default_rng(0))
    pa, pb = 0.82, 0.80
    covariance = 0.6 * pb * (1 - pb) * (1 - 0.02 / 0.2)  # of p and p + g (1 - p) / 0.2
    assert d.mean() == pytest.approx(0.02, abs=0.004)
    assert d.var() == pytest.approx(pa * (1 - pa) + pb * (1 - pb) - 2 * covariance, rel=0.05)


@pytest.mark.parametrize("level", [0.025, 0.001])
def test_what_is_seen_and_how_many_rows_a_gain_needs_by_their_formulas(level: float) -> None:
    """(t + z) error, and M ((t + z) error / g)^2 rows rounded up; Student's t of the clusters, z of 80 %."""
    d = np.random.default_rng(4).normal(0.1, 1.0, 40)
    for found, M in ((gain(d, level=level), 40), (gain(d, level=level, clusters=[n // 4 for n in range(40)]), 10)):
        factor = stats.t.isf(level, M - 1) + stats.norm.ppf(0.8)
        assert found.level == level and found.seen == pytest.approx(factor * found.error)
        assert found.rows_for(0.05) == int(np.ceil(40 * (factor * found.error / 0.05) ** 2))
        assert found.rows_for(1e9) == 2


def test_rows_of_unequal_size_count_as_so_many_alike() -> None:
    """m = (sum w)^2 / sum w^2 rows of one size give the degrees of freedom, at least 1."""
    d, weights = np.array([1.0, 1.0, 1.0, 4.0]), np.array([1.0, 1.0, 3.0, 3.0])
    value, m = 7 / 8, 64 / 20
    left = d - value * weights
    assert (left**3).sum() < 0
    error = np.sqrt(4 / 3 * (left**2).sum()) / 8
    skew = (left**3).mean() / (left**2).mean() ** 1.5
    t = stats.t.isf(0.025, m - 1)
    found = gain(d, weights)
    assert (found.value, found.error) == pytest.approx((value, error))
    assert found.lower == pytest.approx(value - error * errors(t, skew, 4))
    one = gain(np.array([5.0, 0.0, 1e-3]), np.array([10.0, 1e-3, 1e-3]))
    left = np.array([5.0, 0.0, 1e-3]) - one.value * np.array([10.0, 1e-3, 1e-3])
    skew, t = min(0.0, (left**3).mean() / (left**2).mean() ** 1.5), stats.t.isf(0.025, 1)
    assert one.lower == pytest.approx(one.value - one.error * errors(t, skew, 3))


def test_refusals_in_full() -> None:
    said = "^a difference or a weight is no finite number, or a weight is not above 0$"
    for d, weights in (([1.0, np.inf], [1.0, 1.0]), ([1.0, 2.0], [np.nan, 1.0]), ([1.0, 2.0], [1.0, -1.0])):
        with pytest.raises(ValueError, match=said):
            gain(np.array(d), np.array(weights))
    with pytest.raises(ValueError, match=r"one number a row, not \(2, 1\) and \(2, 1\)$"):
        gain(np.ones((2, 1)))
    assert gain([1, 2]).value == 1.5 and gain([1, 3], [1, 1]).rows == 2
    rng = np.random.default_rng(6)
    d, weights = rng.normal(0.3, 1, 40).astype(np.float32), rng.uniform(1, 2, 40).astype(np.float32)
    assert gain(d) == gain(d.astype(float)) and gain(d.astype(float), weights) == gain(d, weights.astype(float))
