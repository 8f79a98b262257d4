"""The calibration error by hand, beside torchmetrics, and how often its interval holds what it says."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk
from torchmetrics.functional.classification import multiclass_calibration_error

from ajuste.learning.statistics import calibration
from ajuste.learning.statistics.calibration import (
    BINS,
    Bins,
    bins_of,
    calibration_error,
    holds,
    plain_error,
)
from ajuste.learning.statistics.metrics import brier, nll
from benchmarks import calibration as simulated


def drawn(classes: int, rows: int = 500) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(classes)
    probabilities = rng.dirichlet(np.full(classes, 0.7), rows)
    return probabilities, np.array([rng.choice(classes, p=row**1.5 / (row**1.5).sum()) for row in probabilities])


def bins(probabilities: np.ndarray, labels: np.ndarray):
    return bins_of(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)


@pytest.mark.parametrize("classes", [2, 5])
def test_plain_and_squared_errors_are_torchmetrics(classes: int) -> None:
    probabilities, labels = drawn(classes)
    found = bins(probabilities, labels)
    asked = torch.from_numpy(probabilities), torch.from_numpy(labels), classes, BINS
    theirs = [multiclass_calibration_error(*asked, norm) for norm in ("l1", "l2")]
    assert plain_error(found) == pytest.approx(float(theirs[0]), abs=1e-6)
    share = found.rows / found.rows.sum()
    assert np.sqrt((share * (found.right - found.confidence) ** 2).sum()) == pytest.approx(float(theirs[1]), abs=1e-6)


@pytest.mark.parametrize("classes", [2, 5])
def test_brier_and_nll_are_scikit_learns(classes: int) -> None:
    probabilities, labels = drawn(classes)
    theirs = probabilities[:, 1] if classes == 2 else probabilities
    assert brier(probabilities, labels).mean() == pytest.approx(sk.brier_score_loss(labels, theirs), abs=1e-12)
    assert nll(probabilities, labels).mean() == pytest.approx(sk.log_loss(labels, probabilities), abs=1e-12)
    assert np.isfinite(nll(np.array([[1.0, 0.0]]), np.array([1]))).all(), "a sure error is large, not infinite"


def test_errors_by_hand_and_weights() -> None:
    # four rows of confidence 0.9, three right: |0.75 - 0.9|; one row of 0.6, right: |1 - 0.6|
    confidence, right = np.array([0.9] * 4 + [0.6]), np.array([1, 1, 0, 1, 1])
    found = bins_of(confidence, right)
    assert plain_error(found) == pytest.approx(4 / 5 * 0.15 + 1 / 5 * 0.4)
    assert found.rows.tolist() == [1, 4] and found.right.tolist() == [1.0, 0.75]
    twice = bins_of(np.repeat(confidence, 2), np.repeat(right, 2), np.full(10, 0.5))
    assert calibration_error(twice) == pytest.approx(calibration_error(found)), "a pair of a ranking of two counts half"


def test_of_many_rows_the_value_is_the_true_error_and_of_a_perfect_model_zero() -> None:
    for kind in simulated.KINDS:
        of = simulated.world("uniform", kind, 0.05)
        found = calibration_error(bins_of(*simulated.draw(*of, 300_000, np.random.default_rng(0))))
        assert found["value"] == pytest.approx(0.05, abs=0.004) and found["low"] < 0.05 < found["high"]
    rng = np.random.default_rng(0)
    c = rng.uniform(0.5, 1, 900)
    perfect = bins_of(c, rng.random(900) < c)
    assert plain_error(perfect) > 0.02, "the plain error reads noise as error"
    assert calibration_error(perfect)["low"] == 0.0 and calibration_error(perfect)["value"] < 0.02


def test_what_the_interval_holds() -> None:
    """`holds`, by which the simulations count, is the interval."""
    rng = np.random.default_rng(4)
    for rows in (60, 400, 3000):
        found = bins_of(*simulated.draw(*simulated.world("uniform", "over", 0.05), rows, rng))
        interval = calibration_error(found)
        for theta in np.linspace(0.002, 0.3, 60):
            if min(abs(theta - interval["low"]), abs(theta - interval["high"])) > 0.002:
                assert holds(found, theta) == (interval["low"] <= theta <= interval["high"]), (rows, theta, interval)


def test_the_interval_of_few_rows_and_of_extremes_stays_in_its_range() -> None:
    for confidence, right in (([0.7], [1]), ([1.0] * 50, [1] * 50), ([1.0] * 50, [0] * 50), ([0.5] * 3, [0, 1, 1])):
        found = calibration_error(bins_of(np.array(confidence), np.array(right)))
        assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1
    assert found["high"] > 0.3, "three rows say little"
    assert calibration_error(bins_of(np.ones(50), np.zeros(50)))["value"] > 0.95


@pytest.mark.parametrize(("kind", "rows", "error"), [("shift", 900, 0.01), ("part", 200, 0.1), ("both", 900, 0.03)])
def test_the_interval_holds_the_truth_as_often_as_it_says(kind: str, rows: int, error: float) -> None:
    """150 splits: a share of 95 % has a standard error of 1.8 points."""
    share, _ = simulated.coverage("uniform", kind, error, rows, number=150)
    assert 0.90 <= share <= 0.995


def test_the_bootstrap_of_the_plain_error_did_not() -> None:
    assert simulated.plain_bootstrap(0.01, 900, number=60) <= 0.1


@pytest.mark.slow
@pytest.mark.parametrize("confidence", simulated.CONFIDENCES)
@pytest.mark.parametrize("kind", simulated.KINDS)
def test_the_interval_holds_the_truth_between_92_and_98_percent(kind: str, confidence: str) -> None:
    shares = [simulated.coverage(confidence, kind, error, rows, number=200)[0]
              for rows in simulated.ROWS for error in simulated.TRUE]
    assert min(shares) >= 0.90 and max(shares) <= 0.995, "200 splits: a standard error of 1.5 points"
    assert 0.92 <= np.mean(shares) <= 0.98


# --- a second computation, by scipy -----------------------------------------------------------------------------------


def likely_gaps(found: Bins) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(the gaps as DerSimonian and Laird shrink them, the chances of a row to be right there, their variances)."""
    n, c, gap = found.rows, found.confidence, found.right - found.confidence
    chance = [min(max(x, 0.25 / (k + 1)), 1 - 0.25 / (k + 1)) for x, k in zip(c, n, strict=True)]
    for _ in range(2):
        v = [p * (1 - p) / k for p, k in zip(chance, n, strict=True)]
        w = [1 / x for x in v]
        mean = sum(a * g for a, g in zip(w, gap, strict=True)) / sum(w)
        Q = sum(a * (g - mean) ** 2 for a, g in zip(w, gap, strict=True))
        C = sum(w) - sum(a * a for a in w) / sum(w)
        between = max(0.0, (Q - (len(w) - 1)) / C) if len(w) > 1 else 0.0
        likely = [mean + between / (between + x) * (g - mean) for x, g in zip(v, gap, strict=True)]
        chance = [min(max(x + g, 0.25 / (k + 1)), 1 - 0.25 / (k + 1)) for x, g, k in zip(c, likely, n, strict=True)]
    chance = np.array(chance)
    return np.array(likely), chance, chance * (1 - chance) / n


def second_way(found: Bins, thetas: np.ndarray) -> tuple[float, np.ndarray]:
    """(T, T' at each theta): the module's formulas with scipy's binomial and normal quantiles."""
    share, gap = found.rows / found.rows.sum(), found.right - found.confidence
    likely, p, v = likely_gaps(found)
    d = likely / np.sqrt((share * likely**2).sum())
    even = calibration._noise()
    A, B = np.zeros(len(even)), np.zeros(len(even))
    for k, rows in enumerate(found.rows):
        off = stats.binom.ppf(even[:, k], round(rows), p[k]) / round(rows) - p[k]
        A, B = A + share[k] * d[k] * off, B + share[k] * (off**2 - v[k])
    spread = np.sqrt(max(0.0, (share * d**4).sum() - 1) / found.rows.sum()) * stats.norm.ppf(even[:, -1])
    return (share * (gap**2 - v)).sum(), np.stack([t**2 * (1 + spread) + 2 * t * A + B for t in thetas])


@pytest.mark.parametrize("rows", [12, 80, 900])
def test_the_interval_is_that_of_a_second_computation(rows: int) -> None:
    found = bins_of(*simulated.draw(*simulated.world("uniform", "part", 0.15), rows, np.random.default_rng(rows)))
    thetas = np.linspace(0, 1, 1001)
    T, T_of = second_way(found, thetas)
    ours, simulate = calibration._simulated(found)
    assert ours == pytest.approx(T, abs=1e-12)
    assert np.mean(np.abs(simulate(thetas[::50]) - T_of[::50]) > 1e-9) < 0.002  # a quantile on a border may go over it
    interval = calibration_error(found)
    for name, reached in second_interval(T, thetas, T_of).items():
        assert interval[name] == pytest.approx(reached, abs=0.006), name


def second_interval(T: float, thetas: np.ndarray, T_of: np.ndarray) -> dict[str, float]:
    """The first theta at which T is no more above its quantile; the first of `thetas` is 0."""
    quantile = {side: np.quantile(T_of, side, axis=1) for side in (0.025, 0.5, 0.95, 0.975)}
    lucky = np.quantile(T_of[0], 0.16)
    quantile[0.975][quantile[0.025] < lucky] = quantile[0.95][quantile[0.025] < lucky]
    sides = {"low": 0.975, "value": 0.5, "high": 0.025}
    return {name: thetas[np.argmax(quantile[side] >= max(T, lucky))] for name, side in sides.items()}


@pytest.mark.parametrize("seed", range(6))
def test_a_small_error_is_held_as_the_second_computation_holds_it(seed: int) -> None:
    """Perfect models, some of them lucky: whether T counts as it is, and which quantile `low` has."""
    found = bins_of(*simulated.draw(*simulated.world("uniform", "over", 0.001), 300, np.random.default_rng(seed)))
    thetas = np.linspace(0, 0.3, 601)
    T, T_of = second_way(found, thetas)
    interval, expected = calibration_error(found), second_interval(T, thetas, T_of)
    assert interval == pytest.approx(expected, abs=0.004) and interval["high"] > 0.02


def test_low_has_all_five_percent_where_high_cannot_be_too_low() -> None:
    found = bins_of(*simulated.draw(*simulated.world("uniform", "over", 0.02), 300, np.random.default_rng(0)))
    thetas = np.linspace(0, 0.3, 61)
    T_of = calibration._simulated(found)[1](thetas)
    quantile = {side: np.quantile(T_of, side, axis=1) for side in (0.025, 0.95, 0.975)}
    alone = quantile[0.025] < np.quantile(T_of[0], 0.16)
    assert alone[0] and not alone[-1]
    high = calibration._sides(found, thetas)[1][0]
    assert high == pytest.approx(np.where(alone, quantile[0.95], quantile[0.975]), abs=1e-12)


def test_noise_is_spread_evenly() -> None:
    even = calibration._noise()
    assert even.shape == (calibration.DRAWS, BINS + 1) and 0 < even.min() and even.max() < 1
    expected = (np.arange(len(even)) + 0.5) / len(even)
    assert np.abs(np.sort(even, axis=0) - expected[:, None]).max() <= 0.5 / len(even) + 1e-9  # one in each stretch
    assert np.abs(np.corrcoef(even.T) - np.eye(BINS + 1)).max() < 0.06
    assert calibration._normal(even[:9, 0]) == pytest.approx(stats.norm.ppf(even[:9, 0]))


def test_bins_are_closed_above_and_few_rows_are_a_binomial() -> None:
    places = calibration.place_of(np.array([0.0, 0.01, 1 / 15, 0.067, 14 / 15, 0.934, 1.0]))
    assert places.tolist() == [0, 0, 0, 1, 13, 14, 14]
    assert calibration.place_of(np.array([1.0000001])).tolist() == [14], "above 1 by rounding"
    assert calibration.place_of(np.array([0.2], np.float32)).tolist() == [3], "0.2 in float32 is a little more"
    even = np.array([0.01, 0.3, 0.49, 0.77, 0.999])
    for rows, p in ((1, 0.3), (5, 0.5), (40, 0.93)):
        expected = stats.binom.ppf(even, rows, p) / rows
        with np.errstate(all="raise"):
            assert calibration._share(even, rows, p).tolist() == pytest.approx(expected.tolist())
    assert calibration._share(even, 0, 0.4).tolist() == calibration._share(even, 1, 0.4).tolist()  # of half a row


def test_gaps_that_noise_explains_are_drawn_to_their_mean_and_one_is_itself() -> None:
    alike = Bins(np.array([50.0, 70.0]), np.array([0.6, 0.8]), np.array([0.55, 0.76]))
    gap, v = alike.right - alike.confidence, np.array([0.6 * 0.4 / 50, 0.8 * 0.2 / 70])
    mean = (gap / v).sum() / (1 / v).sum()
    assert calibration._variance(alike, np.zeros(2)) == pytest.approx(v)
    assert calibration._shrunken(gap, v) == pytest.approx([mean, mean])
    with np.errstate(all="raise"):
        assert calibration._shrunken(np.array([0.2]), np.array([0.01])).tolist() == [0.2]
    far = np.array([0.4, -0.3])
    assert np.abs(calibration._shrunken(far, v) - far).max() < 0.02
    assert calibration._chance(alike, np.array([2.0, -2.0])).tolist() == pytest.approx([1 - 0.25 / 51, 0.25 / 71])


def test_confidences_that_are_exactly_right_have_no_direction() -> None:
    """All gaps are 0, less than chance leaves at any theta: luck. `high` by all 41 x 21 outcomes of 40 and 20 rows."""
    found = calibration_error(Bins(np.array([40.0, 20.0]), np.array([0.5, 0.75]), np.array([0.5, 0.75])))
    (n, m), (p, q) = (40, 20), (0.5, 0.75)
    a, b = np.arange(n + 1)[:, None] / n - p, np.arange(m + 1)[None] / m - q
    chances = (stats.binom.pmf(np.arange(n + 1), n, p)[:, None] * stats.binom.pmf(np.arange(m + 1), m, q)).ravel()

    def quantile(theta: float, side: float) -> float:
        T = (2 / 3 * ((theta + a) ** 2 - p * (1 - p) / n) + 1 / 3 * ((theta + b) ** 2 - q * (1 - q) / m)).ravel()
        order = T.argsort()
        return T[order][np.searchsorted(chances[order].cumsum(), side)]

    lucky, thetas = quantile(0.0, 0.16), np.linspace(0, 0.3, 601)
    high = thetas[np.argmax([quantile(theta, 0.025) >= lucky for theta in thetas])]
    assert found["value"] == found["low"] == 0.0 and found["high"] == pytest.approx(high, abs=0.005)
    assert 0.1 < found["high"] < 0.13
