"""Metrics against scikit-learn, intervals against closed forms and brute force."""

import tracemalloc

import numpy as np
import pytest
from sklearn import metrics as sk

from ajuste.learning.statistics import metrics


@pytest.fixture(params=[2, 4])
def scored(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [200, C] with ties and labels that they predict a little."""
    rng = np.random.default_rng(request.param)
    labels = rng.integers(0, request.param, 200)
    logits = rng.normal(size=(200, request.param)).round(1) + np.eye(request.param)[labels]
    exponents = np.exp(logits)
    return exponents / exponents.sum(axis=1, keepdims=True), labels


def by_sklearn(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    predicted = probabilities.argmax(axis=1)
    binary = probabilities.shape[1] == 2
    auc = (
        sk.roc_auc_score(labels, probabilities[:, 1])
        if binary
        else sk.roc_auc_score(labels, probabilities, multi_class="ovr")
    )
    return {
        "accuracy": sk.accuracy_score(labels, predicted),
        "macro_f1": sk.f1_score(labels, predicted, average="macro"),
        "mcc": sk.matthews_corrcoef(labels, predicted),
        "auc": auc,
        "brier": sk.brier_score_loss(labels, probabilities[:, 1] if binary else probabilities),
        "nll": sk.log_loss(labels, probabilities),
    }


def test_values_are_scikit_learns(scored: tuple[np.ndarray, np.ndarray]) -> None:
    found = metrics.all_metrics(*scored)
    for name, value in by_sklearn(*scored).items():
        assert found[name][0] == pytest.approx(value, abs=1e-12), name


def test_a_resample_by_counts_equals_the_rows_written_out(scored: tuple[np.ndarray, np.ndarray]) -> None:
    """The vectorised bootstrap against scikit-learn on each resample, row by row."""
    probabilities, labels = scored
    counts = metrics.resamples(len(labels), 5, seed=1)
    found = metrics.all_metrics(probabilities, labels, counts)
    for b, row in enumerate(counts):
        rows = np.repeat(np.arange(len(labels)), row.astype(int))
        for name, value in by_sklearn(probabilities[rows], labels[rows]).items():
            assert found[name][b] == pytest.approx(value, abs=1e-12), name


def test_resamples_draw_as_many_rows_as_there_are_and_repeat() -> None:
    counts = whole(metrics.resamples(50, 300, seed=7))
    assert (counts.sum(axis=1) == 50).all()
    assert counts.mean() == pytest.approx(1.0)
    assert np.array_equal(counts, whole(metrics.resamples(50, 300, seed=7)))
    assert not np.array_equal(counts, whole(metrics.resamples(50, 300, seed=8)))


def whole(counts: metrics.Resamples) -> np.ndarray:
    return np.stack(list(counts))


def drawn_at_once(rows: int, number: int, seed: int) -> np.ndarray:
    """The whole matrix from one call of the generator: what a bootstrap of few rows was, and must stay."""
    draws = np.random.default_rng(seed).integers(0, rows, size=(number, rows))
    return np.stack([np.bincount(row, minlength=rows) for row in draws]).astype(np.float64)


@pytest.mark.parametrize("block", [8_000_000, 37 * 16, 37 * 3, 1])
def test_blocks_give_what_the_whole_matrix_gives(monkeypatch: pytest.MonkeyPatch, scored: tuple, block: int) -> None:
    monkeypatch.setattr(metrics, "BLOCK", block)
    probabilities, labels = (values[:37] for values in scored)
    counts, dense = metrics.resamples(37, 100, seed=5), drawn_at_once(37, 100, 5)
    assert len(counts) == 100 and counts.shape == dense.shape
    assert np.array_equal(whole(counts), dense) and np.array_equal(whole(counts), dense), "as often as it is asked"
    found, expected = (metrics.all_metrics(probabilities, labels, c) for c in (counts, dense))
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys(metrics.METRICS, 100)
    for name in metrics.METRICS:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-14, equal_nan=True)
    sums, weights = probabilities[:, 0], np.arange(1.0, 38)
    assert metrics.estimate(sums, weights, counts) == pytest.approx(metrics.estimate(sums, weights, dense), rel=1e-14)
    np.testing.assert_allclose(counts @ probabilities, dense @ probabilities, rtol=1e-14)


def test_memory_does_not_grow_with_rows_times_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 resamples of 10,000 rows are a matrix of 80 MB; a block of them is 8 MB."""
    monkeypatch.setattr(metrics, "BLOCK", 1_000_000)
    random = np.random.default_rng(0)
    probabilities, labels = random.dirichlet([1, 1], 10_000), random.integers(0, 2, 10_000)
    tracemalloc.start()
    try:
        metrics.all_metrics(probabilities, labels, metrics.resamples(10_000, 1000, seed=0))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 70e6


def test_a_resample_without_weight_is_left_out() -> None:
    weights = np.array([0.0, 0.0, 0.0, 1.0])
    found = metrics.estimate(weights * 0.25, weights, metrics.resamples(4, 200, seed=0))
    assert found == {"value": 0.25, "low": 0.25, "high": 0.25}


def test_auc_is_the_share_of_pairs_in_order() -> None:
    """Brute force over all pairs, ties counting one half."""
    rng = np.random.default_rng(0)
    score, positive = rng.integers(0, 5, 40) / 5, rng.random(40) < 0.4
    pairs = [(p > n) + (p == n) / 2 for p in score[positive] for n in score[~positive]]
    found = metrics.auc(np.stack([1 - score, score], axis=1), positive.astype(int))[0]
    assert found == pytest.approx(np.mean(pairs))


def test_auc_without_a_class_is_nan_and_its_interval_too() -> None:
    value = metrics.auc(np.array([[0.2, 0.8], [0.6, 0.4]]), np.array([1, 1]))
    assert np.isnan(value[0])
    assert all(np.isnan(metrics.percentile_interval(value)))


def test_bootstrap_interval_of_a_share_is_near_the_binomial_one() -> None:
    """Accuracy of 800 of 1,000: the percentile interval against Wilson's closed form, to a point."""
    predictions = np.r_[np.ones(800, int), np.zeros(200, int)]
    matrix = metrics.confusion(np.ones(1000, int), predictions, 2, metrics.resamples(1000, 2000, seed=0))
    low, high = metrics.percentile_interval(metrics.accuracy(matrix))
    assert (low, high) == pytest.approx(metrics.wilson_interval(800, 1000), abs=0.01)


@pytest.mark.parametrize("successes,rows", [(0, 10), (3, 10), (10, 10), (812, 1000)])
def test_wilson_against_scipy(successes: int, rows: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(successes, rows).proportion_ci(method="wilson")
    assert metrics.wilson_interval(successes, rows) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert metrics.wilson_interval(0, 0) == (0.0, 1.0)


def test_distinct_counts_ngrams_over_all_rows() -> None:
    rows = [[1, 2, 1, 2], [1, 2], [3]]  # bigrams 12 21 12, 12
    assert metrics.distinct(rows, 2) == 2 / 4
    assert metrics.distinct(rows, 1) == 3 / 7
    assert np.isnan(metrics.distinct([[1]], 2))


def test_every_row_is_drawn_as_often() -> None:
    counts = whole(metrics.resamples(20, 400, seed=3))
    assert counts.shape == (400, 20) and counts.dtype == np.float64
    assert counts.mean(axis=0) == pytest.approx(1.0, abs=5 * (0.95 / 400) ** 0.5)  # five standard errors


def test_what_no_row_says_is_0_or_left_out() -> None:
    """Classes never seen nor predicted, a constant prediction, a class without positives, resamples without a value."""
    matrix = metrics.confusion(np.array([0, 0, 1]), np.array([0, 0, 0]), 3)
    assert metrics.macro_f1(matrix).tolist() == pytest.approx([2 * 2 / 5 / 3]) and metrics.mcc(matrix).tolist() == [0.0]
    assert metrics.mcc(metrics.confusion(np.array([0, 0]), np.array([0, 1]), 2)).tolist() == [0.0]
    probabilities = np.array([[0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.6, 0.1, 0.3], [0.3, 0.4, 0.3]])
    labels = np.array([0, 1, 1, 0])  # class 0: 0.5 and 0.3 against 0.2 and 0.6; class 1: 0.7 and 0.1 against 0.3, 0.4
    assert metrics.auc(probabilities, labels).tolist() == pytest.approx([(2 / 4 + 2 / 4) / 2])
    assert metrics.percentile_interval(np.array([np.nan, 1.0, 3.0, np.nan])) == pytest.approx((1.05, 2.95))


def test_an_estimate_is_a_mean_over_what_the_rows_hold() -> None:
    sums, weights = np.array([6.0, 1.0, 2.0]), np.array([3.0, 1.0, 4.0])
    counts = np.array([[1.0, 1, 1], [2, 1, 0], [0, 0, 3]])
    means = [9 / 8, 13 / 7, 6 / 12]
    assert metrics.weighted_mean(sums, weights, counts).tolist() == pytest.approx(means)
    low, high = np.percentile(means, [2.5, 97.5])
    assert metrics.estimate(sums, weights, counts) == pytest.approx({"value": 9 / 8, "low": low, "high": high})
    assert metrics.distinct([[1, 2, 3, 1, 2]]) == 3 / 4  # of pairs, where nothing is said
    assert metrics.nll(np.array([[0.0, 1.0]]), np.array([0])).tolist() == [-np.log(np.finfo(np.float64).tiny)]


def test_a_single_pair_is_enough_and_nothing_is_divided_by_0() -> None:
    """One positive and one negative; a resample without either gives nan, and no warning on the way."""
    probabilities = np.array([[0.4, 0.6], [0.7, 0.3]])
    with np.errstate(all="raise"):
        assert metrics.auc(probabilities, np.array([1, 0])).tolist() == [1.0]
        assert metrics.auc(probabilities, np.array([0, 1])).tolist() == [0.0]
        counts = np.array([[1.0, 1.0], [2.0, 0.0]])
        assert np.isnan(metrics.auc(probabilities, np.array([1, 0]), counts)).tolist() == [False, True]


@pytest.mark.parametrize(("rows", "size"), [(0, 96), (1, 96), (5, 16), (11, 8), (12, 8), (25, 4), (200, 1)])
def test_blocks_of_resamples_are_whole_eights_where_they_can_be(monkeypatch, rows, size):
    """100 counts at once: 100 // 5 = 20 are 16, 100 // 11 = 9 are 8, 100 // 25 = 4 stay 4; a row too long is alone."""
    monkeypatch.setattr(metrics, "BLOCK", 100)
    assert metrics.Resamples(rows, 50, seed=0).size == size


def test_a_single_block_is_kept_and_more_are_drawn_again(monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK", 100)
    one, two = metrics.Resamples(5, 16, seed=3), metrics.Resamples(5, 17, seed=3)
    (first,), (again,) = one.blocks(), one.blocks()
    assert first is again and first.shape == (16, 5)
    assert [block.shape for block in two.blocks()] == [(16, 5), (1, 5)]
    assert np.array_equal(np.concatenate(list(two.blocks())), np.array(list(two)))


def test_a_share_of_nothing_is_no_number_and_no_warning():
    with np.errstate(all="raise"):
        found = metrics._divided(np.array([0.0, 6.0]), np.array([0.0, 2.0]))
    assert np.isnan(found[0]) and found[1] == 3.0
