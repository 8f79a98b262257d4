"""Metrics of a classifier with their uncertainty, vectorised over bootstrap resamples.

A resample of N rows is a vector of counts (how often each row was drawn), so every metric here takes `counts` [B, N]
and answers for all B resamples with matrix products, a block of them at a time: memory does not grow with B N.

    accuracy   = trace(M) / sum(M)                                             M[y, p] = confusion matrix [B, C, C]
    macro-F1   = mean_c 2 M[c,c] / (sum_p M[c,p] + sum_y M[y,c])               0 for a class never seen nor predicted
    MCC        = (s c - sum_k t_k p_k) / sqrt((s^2 - sum p_k^2)(s^2 - sum t_k^2))      Gorodkin 2004, any C classes
    AUC        = P(score of a positive > score of a negative) + P(equal) / 2          one class against the rest, mean
    Brier      = mean over rows of sum_c (p_c - 1[y = c])^2 / 2 of two classes, without the half of more; scikit-learn's
    NLL        = mean of -log p_y, with p at least the smallest double above 0

    interval(metric over resamples) = its 2.5 % and 97.5 % percentiles (Efron's percentile bootstrap)
    distinct-n = different n-grams / n-grams over all responses      Li et al. 2016; low: a model repeats itself
    Wilson interval of k successes in n = (k + z^2/2 +- z sqrt(k (n-k)/n + z^2/4)) / (n + z^2)
"""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

METRICS = ("accuracy", "macro_f1", "mcc", "auc", "brier", "nll")
BLOCK = 8_000_000  # counts that are held at once: 64 MB


class Resamples:
    """Counts [B, N] of bootstrap resamples, N draws with replacement each, as a matrix that is never whole.

    It is drawn block by block whenever it is used, always the same; one that is a single block is kept. `counts @ x`
    of x [N] or [N, C] is that of the whole matrix.
    """

    def __init__(self, rows: int, number: int, seed: int) -> None:
        self.shape, self.seed = (number, rows), seed
        self.size = max(1, BLOCK // max(rows, 1))  # resamples of a block
        if self.size > 8:
            self.size -= self.size % 8  # BLAS sums the rows of a matrix in groups of as many

    def blocks(self) -> Iterator[np.ndarray]:
        """The matrix in blocks of its rows."""
        if self.shape[0] <= self.size:
            yield self._single
        else:
            yield from self._drawn()

    def __matmul__(self, values: np.ndarray) -> np.ndarray:
        return np.concatenate([block @ values for block in self.blocks()])

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in self.blocks():
            yield from block

    @cached_property
    def _single(self) -> np.ndarray:
        return next(self._drawn())

    def _drawn(self) -> Iterator[np.ndarray]:
        number, rows = self.shape
        random = np.random.default_rng(self.seed)
        for begin in range(0, number, self.size):
            many = min(self.size, number - begin)
            draws = random.integers(0, rows, size=(many, rows))
            draws += np.arange(many)[:, None] * rows
            yield np.bincount(draws.ravel(), minlength=many * rows).reshape(many, rows).astype(np.float64)


def confusion(
    labels: np.ndarray, predictions: np.ndarray, classes: int, counts: np.ndarray | Resamples | None = None
) -> np.ndarray:
    """Confusion matrices [B, C, C], true class by row. labels, predictions: integers [N]. counts: [B, N]."""
    cell = np.eye(classes * classes)[labels * classes + predictions]  # [N, C*C]
    found = [block @ cell for block in _blocks(counts, len(labels))]
    return np.concatenate(found).reshape(-1, classes, classes)


def accuracy(matrix: np.ndarray) -> np.ndarray:
    """Share of rows on the diagonal. matrix: [B, C, C] -> [B]."""
    return np.trace(matrix, axis1=1, axis2=2) / matrix.sum(axis=(1, 2))


def macro_f1(matrix: np.ndarray) -> np.ndarray:
    """Unweighted mean of the classes' F1. matrix: [B, C, C] -> [B]."""
    hits = np.diagonal(matrix, axis1=1, axis2=2)
    both = matrix.sum(axis=1) + matrix.sum(axis=2)
    return np.divide(2 * hits, both, out=np.zeros_like(both), where=both > 0).mean(axis=1)


def mcc(matrix: np.ndarray) -> np.ndarray:
    """Matthews correlation coefficient, 0 where it is 0/0. matrix: [B, C, C] -> [B]."""
    true, predicted, rows = matrix.sum(axis=2), matrix.sum(axis=1), matrix.sum(axis=(1, 2))
    covariance = np.trace(matrix, axis1=1, axis2=2) * rows - (true * predicted).sum(axis=1)
    scale = np.sqrt((rows**2 - (predicted**2).sum(axis=1)) * (rows**2 - (true**2).sum(axis=1)))
    return np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 0)


def auc(probabilities: np.ndarray, labels: np.ndarray, counts: np.ndarray | Resamples | None = None) -> np.ndarray:
    """Area under the ROC curve [B]; over two classes the mean of one against the rest.

    probabilities: [N, C]. A class without both positives and negatives in a resample is left out of its mean; a
    resample without any such class gives nan.
    """
    return np.concatenate([_auc(probabilities, labels, block) for block in _blocks(counts, len(labels))])


def _auc(probabilities: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    columns = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    areas = np.stack([_auc_of_class(probabilities[:, c], labels == c, counts) for c in columns])
    defined = ~np.isnan(areas)
    number = defined.sum(axis=0)
    total = np.where(defined, areas, 0).sum(axis=0)
    return np.divide(total, number, out=np.full(len(total), np.nan), where=number > 0)


def _auc_of_class(score: np.ndarray, positive: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[B]: for each group of equal scores, its positives times the negatives below it and half of those in it."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))
    positives = np.add.reduceat(counts[:, order] * positive[order], starts, axis=1)
    negatives = np.add.reduceat(counts[:, order] * ~positive[order], starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    wins = (positives * (below + negatives / 2)).sum(axis=1)
    return np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def brier(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of each row [N]. probabilities: [N, C], labels: integers [N]."""
    squares = ((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(axis=1)
    return squares / 2 if probabilities.shape[1] == 2 else squares


def nll(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """-log p of the true class, in nats, of each row [N]. probabilities: [N, C], labels: integers [N]."""
    return -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], np.finfo(np.float64).tiny))


def all_metrics(
    probabilities: np.ndarray, labels: np.ndarray, counts: np.ndarray | Resamples | None = None
) -> dict[str, np.ndarray]:
    """Every metric of METRICS as an array [B]. probabilities: [N, C], labels: integers [N], counts: [B, N] or None."""
    parts = [_all_metrics(probabilities, labels, block) for block in _blocks(counts, len(labels))]
    return {name: np.concatenate([part[name] for part in parts]) for name in METRICS}


def _all_metrics(probabilities: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    matrix = confusion(labels, probabilities.argmax(axis=1), probabilities.shape[1], counts)
    return {
        "accuracy": accuracy(matrix),
        "macro_f1": macro_f1(matrix),
        "mcc": mcc(matrix),
        "auc": auc(probabilities, labels, counts),
        **{name: weighted_mean(score(probabilities, labels), np.ones(len(labels)), counts)
           for name, score in (("brier", brier), ("nll", nll))},
    }


def resamples(rows: int, number: int, seed: int) -> Resamples:
    """Counts [number, rows] of bootstrap resamples: `rows` draws with replacement each."""
    return Resamples(rows, number, seed)


def weighted_mean(
    sums: np.ndarray, weights: np.ndarray, counts: np.ndarray | Resamples | None = None
) -> np.ndarray:
    """sum(sums) / sum(weights) over the rows drawn: [B]. sums, weights: a row's total and its size, each [N].

    With a row's loss and its tokens: the mean loss of a token. Rows are drawn whole, since tokens of a row go together.
    """
    return np.concatenate([_divided(block @ sums, block @ weights) for block in _blocks(counts, len(sums))])


def _divided(sums: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.divide(sums, weights, out=np.full(len(sums), np.nan), where=weights != 0)


def estimate(sums: np.ndarray, weights: np.ndarray, counts: np.ndarray | Resamples) -> dict[str, float]:
    """{"value", "low", "high"}: weighted_mean over all rows, and its percentile interval over resamples [B, N].

    A resample without any weight has no mean and is left out.
    """
    low, high = percentile_interval(weighted_mean(sums, weights, counts))
    return {"value": float(weighted_mean(sums, weights)[0]), "low": low, "high": high}


def distinct(rows: Sequence[Sequence[int]], n: int = 2) -> float:
    """Different n-grams over all n-grams of the rows of tokens; nan where no row has n tokens.

    It falls as more text is looked at: compare only as many rows of about the same length.
    """
    grams = [tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams) if grams else math.nan


def percentile_interval(values: np.ndarray) -> tuple[float, float]:
    """The 2.5 % and 97.5 % percentiles of a metric over resamples [B], nan left out; (nan, nan) if there is none."""
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def wilson_interval(successes: int, rows: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); it stays inside [0, 1] and is honest for few rows. (0, 1) for no rows."""
    if rows == 0:
        return 0.0, 1.0
    centre = successes + z * z / 2
    half = z * math.sqrt(successes * (rows - successes) / rows + z * z / 4)
    return max(0.0, (centre - half) / (rows + z * z)), min(1.0, (centre + half) / (rows + z * z))


def _blocks(counts: np.ndarray | Resamples | None, rows: int) -> Iterator[np.ndarray]:
    """The matrix [B, N] in blocks; None: every row once."""
    if isinstance(counts, Resamples):
        yield from counts.blocks()
    else:
        yield np.ones((1, rows)) if counts is None else counts
