"""Best-of-n against all subsets, against an enumerated policy, and against its bound."""

import itertools
import math

import numpy as np
import pytest

from ajuste.learning.rl.best_of_n import best_of_n, exact_kl, kl_bound, measured_kl, weights

SCORES = np.array([[0.3, -1.0, 2.0, 0.5, 0.1, 0.9], [1.0, 1.0, 0.0, 2.0, 0.0, 2.0]])


@pytest.mark.parametrize("n", range(1, 7))
def test_the_value_is_the_mean_over_all_subsets(n: int) -> None:
    """Of equals in a subset each is the best equally often."""
    gold = np.array([[1.0, 5.0, -2.0, 3.0, 0.0, 7.0], [4.0, 1.0, 9.0, -3.0, 2.0, 6.0]])
    for proxy, values, found in zip(SCORES, gold, best_of_n(SCORES, gold, n), strict=True):
        means = []
        for subset in itertools.combinations(range(6), n):
            top = max(proxy[i] for i in subset)
            means.append(np.mean([values[i] for i in subset if proxy[i] == top]))
        assert found == pytest.approx(np.mean(means))


def test_the_ends_are_the_mean_and_the_best() -> None:
    assert best_of_n(SCORES, SCORES, 1) == pytest.approx(SCORES.mean(1))
    assert best_of_n(SCORES, SCORES, 6) == pytest.approx(SCORES.max(1))
    assert weights(np.arange(200.0), 64).sum() == pytest.approx(1.0)


def test_more_samples_estimate_the_same_value() -> None:
    """The best of 4 of a uniform score is 4/5, from 4 samples a prompt and from 64."""
    rng = np.random.default_rng(0)
    for N in (4, 32):
        drawn = rng.random((1000, N))
        assert best_of_n(drawn, drawn, 4).mean() == pytest.approx(4 / 5, abs=0.015)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_exact_kl_is_that_of_all_draws(n: int) -> None:
    """p over 5 responses, two of one score: p_n by enumerating every n draws, the best of equals at random."""
    p, score = np.array([0.1, 0.4, 0.2, 0.25, 0.05]), np.array([0.0, 1.0, 1.0, 2.0, 3.0])
    p_n = np.zeros(5)
    for draws in itertools.product(range(5), repeat=n):
        top = [y for y in draws if score[y] == max(score[list(draws)])]
        for y in top:
            p_n[y] += math.prod(p[list(draws)]) / len(top)
    assert p_n.sum() == pytest.approx(1.0)
    kl = (p_n * np.log(p_n / p)).sum()
    assert exact_kl(np.array([0.1, 0.6, 0.25, 0.05]), n) == pytest.approx(kl)
    assert kl <= kl_bound(n) + 1e-12


@pytest.mark.parametrize("n", [2, 4, 16])
def test_the_measured_kl_finds_the_exact_one_and_stays_under_its_bound(n: int) -> None:
    rng = np.random.default_rng(n)
    p = np.array([0.05, 0.3, 0.2, 0.3, 0.15])
    found = [measured_kl(rng.choice(5, size=256, p=p), n) for _ in range(200)]
    assert np.mean(found) == pytest.approx(exact_kl(p, n), abs=0.03)
    assert max(found) <= kl_bound(n)


def test_the_measured_kl_lies_between_0_and_the_bound() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        N = int(rng.integers(1, 40))
        n = int(rng.integers(1, N + 1))
        scores = rng.integers(0, rng.integers(1, 2 * N + 1), size=N)
        assert 0 <= measured_kl(scores, n) <= kl_bound(n)
    assert measured_kl(rng.random(32), 8) == kl_bound(8), "without equals it is the bound"
    assert measured_kl(np.zeros(32), 32) == 0, "one response alone"


def test_the_bound() -> None:
    assert kl_bound(1) == 0 and kl_bound(2) == pytest.approx(math.log(2) - 0.5)
    continuous = exact_kl(np.full(100_000, 1e-5), 8)
    assert continuous == pytest.approx(kl_bound(8), abs=1e-4) and continuous < kl_bound(8)


@pytest.mark.parametrize("n", [0, 5])
def test_n_beyond_the_samples_is_an_error(n: int) -> None:
    with pytest.raises(ValueError, match=f"best of {n}: there are 4 samples"):
        weights([1.0, 2.0, 3.0, 4.0], n)
    with pytest.raises(ValueError, match="^a score of the proxy is no finite number$"):
        weights([1.0, math.nan], 1)


def test_a_response_too_rare_to_be_the_best_adds_nothing() -> None:
    """Its p_n is 0 in floating point: 0 ln 0 is 0, and the KL is that of the two others."""
    with np.errstate(all="raise", under="ignore"):
        found = exact_kl(np.array([1e-300, 0.5, 0.5]), 2)
    assert found == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
