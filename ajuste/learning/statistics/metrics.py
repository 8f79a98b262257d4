"""Metrics of a classifier with their uncertainty, vectorised over bootstrap resamples.

A resample of N rows is a vector of counts (how often each row was drawn), so every metric here takes `counts` [B, N]
and answers for all B resamples at once with matrix products:

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
from collections.abc import Sequence

import numpy as np

METRICS = ("accuracy", "macro_f1", "mcc", "auc", "brier", "nll")


def confusion(
    labels: np.ndarray, predictions: np.ndarray, classes: int, counts: np.ndarray | None = None
) -> np.ndarray:
    """Confusion matrices [B, C, C], true class by row. labels, predictions: integers [N]. counts: [B, N]."""
    cell = np.eye(classes * classes)[labels * classes + predictions]  # [N, C*C]
    return (_counts(counts, len(labels)) @ cell).reshape(-1, classes, classes)


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


def auc(probabilities: np.ndarray, labels: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """Area under the ROC curve [B]; over two classes the mean of one against the rest.

    probabilities: [N, C]. A class without both positives and negatives in a resample is left out of its mean; a
    resample without any such class gives nan.
    """
    counts = _counts(counts, len(labels))
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
    probabilities: np.ndarray, labels: np.ndarray, counts: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Every metric of METRICS as an array [B]. probabilities: [N, C], labels: integers [N], counts: [B, N] or None."""
    matrix = confusion(labels, probabilities.argmax(axis=1), probabilities.shape[1], counts)
    return {
        "accuracy": accuracy(matrix),
        "macro_f1": macro_f1(matrix),
        "mcc": mcc(matrix),
        "auc": auc(probabilities, labels, counts),
        **{name: weighted_mean(score(probabilities, labels), np.ones(len(labels)), counts)
           for name, score in (("brier", brier), ("nll", nll))},
    }


def resamples(rows: int, number: int, seed: int) -> np.ndarray:
    """Counts [number, rows] of bootstrap resamples: `rows` draws with replacement each."""
    draws = np.random.default_rng(seed).integers(0, rows, size=(number, rows))
    offsets = np.arange(number)[:, None] * rows
    return np.bincount((draws + offsets).ravel(), minlength=number * rows).reshape(number, rows).astype(np.float64)


def weighted_mean(sums: np.ndarray, weights: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """sum(sums) / sum(weights) over the rows drawn: [B]. sums, weights: a row's total and its size, each [N].

    With a row's loss and its tokens: the mean loss of a token. Rows are drawn whole, since tokens of a row go together.
    """
    counts = _counts(counts, len(sums))
    return (counts @ sums) / (counts @ weights)


def estimate(sums: np.ndarray, weights: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """{"value", "low", "high"}: weighted_mean over all rows, and its percentile interval over resamples [B, N]."""
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


def _counts(counts: np.ndarray | None, rows: int) -> np.ndarray:
    return np.ones((1, rows)) if counts is None else counts
