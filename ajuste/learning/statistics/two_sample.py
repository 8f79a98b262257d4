"""Two-sample tests for drift: do the rows of a window come from where the reference rows come from?

    length        Kolmogorov-Smirnov (scipy)      D = max_t |F_reference(t) - F_window(t)|
    classes       chi-squared on the table of counts, Fisher's exact test for two classes of which one is rare (scipy);
                  TV = 1/2 sum_c |p_c - q_c|
    share         difference of sum(hits)/sum(words); its test permutes whole texts, since words of a text go together
    embeddings    energy distance, Szekely and Rizzo 2004:  E = 2 E|X-Y| - E|X-X'| - E|Y-Y'|, pairs of different rows;
                  coefficient H = E / (2 E|X-Y|): 0 for one distribution, 1 for two points

A permutation test deals the rows of both samples to two groups at random, B times: p = (1 + #{T* >= T}) / (B + 1). It
is exact for any sizes and any distribution, as long as rows are independent. All permutations are one matrix product.

Holm's correction of m p-values keeps the chance of any false alarm at alpha, however the tests depend on each other.
Private to the tasks.
"""

import numpy as np

# scipy takes seconds to import, and every `ajuste run` reads the config of drift: so it is imported where it is used

FEWEST_EXPECTED = 5  # rows that a class must be expected to have for the chi-squared test, as is usual
TIE = 1e-12  # relative; a permutation that deals the same rows differs by rounding alone


def length_test(reference: np.ndarray, window: np.ndarray) -> tuple[float, float]:
    """(D, p) of two samples of numbers [n], [m]. With ties p is too large, never too small."""
    from scipy.stats import ks_2samp

    found = ks_2samp(reference, window)
    return float(found.statistic), float(found.pvalue)


def class_test(reference: np.ndarray, window: np.ndarray) -> tuple[float, float]:
    """(TV, p) of counts by class, [C] each. Classes that are too rare for the test are joined; one class: p = 1."""
    from scipy.stats import chi2_contingency, fisher_exact

    shares = reference / reference.sum(), window / window.sum()
    effect = float(np.abs(shares[0] - shares[1]).sum() / 2)
    table = np.stack([reference, window])
    expected = table.sum(axis=0) * table.sum(axis=1).min() / table.sum()
    rare = expected < FEWEST_EXPECTED
    if rare.any():
        table = np.concatenate([table[:, ~rare], table[:, rare].sum(axis=1, keepdims=True)], axis=1)
    table = table[:, table.sum(axis=0) > 0]
    if table.shape[1] < 2:
        return effect, 1.0
    if table.shape[1] == 2 and rare.any():
        return effect, float(fisher_exact(table).pvalue)
    return effect, float(chi2_contingency(table, correction=False).pvalue)


def share_test(
    reference: tuple[np.ndarray, np.ndarray], window: tuple[np.ndarray, np.ndarray], permutations: int, seed: int
) -> tuple[float, float]:
    """(share in the window - share in the reference, two-sided p). Each sample: hits [n] and words [n] of its texts."""
    hits, words = (np.concatenate(pair).astype(float) for pair in zip(reference, window, strict=True))
    first = deals(len(reference[0]), len(window[0]), permutations, seed)

    def difference(chosen: np.ndarray) -> np.ndarray:
        inside = (chosen @ hits) / np.maximum(chosen @ words, 1)
        outside = (hits.sum() - chosen @ hits) / np.maximum(words.sum() - chosen @ words, 1)
        return outside - inside

    effect = float(difference(observed(len(reference[0]), len(window[0])))[0])
    return effect, _p(np.abs(difference(first)), abs(effect))


def energy_test(reference: np.ndarray, window: np.ndarray, permutations: int, seed: int) -> tuple[float, float]:
    """(H, p) of two samples of vectors [n, d], [m, d]. H is unbiased about 0 without drift, so it may be below."""
    from scipy.spatial.distance import cdist

    n, m = len(reference), len(window)
    rows = np.concatenate([reference, window]).astype(np.float64)
    distances = cdist(rows, rows)
    total = distances.sum()

    def statistic(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inner = chosen @ distances
        first = (inner * chosen).sum(axis=1)
        between = inner.sum(axis=1) - first
        second = total - first - 2 * between
        across = between / (n * m)
        return 2 * across - first / (n * (n - 1)) - second / (m * (m - 1)), across

    energy, across = (float(value[0]) for value in statistic(observed(n, m)))
    permuted, _ = statistic(deals(n, m, permutations, seed))
    return (energy / (2 * across) if across else 0.0), _p(permuted, energy)


def deals(n: int, m: int, number: int, seed: int) -> np.ndarray:
    """Random deals [number, n + m]: 1 for the n rows that go to the first group."""
    return np.random.default_rng(seed).permuted(np.tile(observed(n, m), (number, 1)), axis=1)


def observed(n: int, m: int) -> np.ndarray:
    """The deal [1, n + m] that was seen: the first n rows are the first group."""
    return np.concatenate([np.ones(n), np.zeros(m)])[None]


def corrected(p_values: list[float], how: str) -> list[float]:
    """p-values that may be compared with alpha, whatever their number. how: `holm` or `bh` (Benjamini-Hochberg)."""
    values = np.asarray(p_values, float)
    if how == "bh":
        from scipy.stats import false_discovery_control

        return false_discovery_control(values, method="bh").tolist()
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    result = np.empty_like(values)
    result[order] = np.minimum(steps, 1)
    return result.tolist()


def _p(permuted: np.ndarray, seen: float) -> float:
    return float((1 + (permuted >= seen - TIE * max(1.0, abs(seen))).sum()) / (len(permuted) + 1))
