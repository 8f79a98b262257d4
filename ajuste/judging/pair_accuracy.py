"""What a reward model is worth on comparisons that it never saw: evaluation.json of stage `reward`.

    accuracy       share of the pairs whose better response has the higher reward; equal rewards count a half
    by_margin      the same for pairs whose human ratings are at least so far apart, beside what people reach on the
                   very same pairs: one rater against the others, and half of the raters against the other half
    by_length      the same in four groups of as many pairs, from short responses to long ones
    by_longer      the same where the better response is the longer one, the shorter one, or neither
    calibration    p(win) = sigmoid(difference) against how often it was right: `error` with its interval, Brier score,
                   NLL (ajuste/learning/statistics/calibration.py), the bins, and `ece`, the plain error of these bins
    length_correlation   of reward and tokens over all responses; with people's ratings beside it where there are any

A ranking of K responses counts once, with the mean over its pairs; so `interval` (Wilson, 95 %) counts comparisons.
Calibration needs the differences as they were trained: rewards that were scaled afterwards are scaled back.
"""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from ajuste.learning.losses.bradley_terry import pairs
from ajuste.learning.statistics import calibration, metrics
from ajuste.learning.statistics.metrics import estimate, resamples, wilson_interval
from ajuste.rows.encoded.comparisons import HUMANS, Comparisons
from ajuste.rows.parquet import ParquetRows

MARGINS = (0.5, 1.0, 1.5, 2.5)
GROUPS = 4
RESAMPLES = 1000


def evaluate(rewards: np.ndarray, comparisons: Comparisons, gain: float) -> dict:
    """The report on one split. rewards: [M], of `comparisons.rows()`; gain: what they were scaled by after training."""
    better, worse, owner = (places.numpy() for places in pairs(comparisons.sizes()))
    difference = rewards[better] - rewards[worse]
    right = _right(difference)
    lengths = np.array([length for one in comparisons for length in one.lengths], dtype=float)
    margins = _margins(comparisons, owner)
    longer = np.sign(lengths[better] - lengths[worse])

    def share(chosen: np.ndarray) -> dict:
        return {"pairs": int(chosen.sum()), "accuracy": accuracy(right[chosen], owner[chosen])}

    by_margin = [
        {
            "margin": margin,
            **share(margins >= margin),
            **{name: _human(comparisons, owner[margins >= margin], name) for name in HUMANS},
        }
        for margin in MARGINS
        if not np.isnan(margins).all()
    ]
    return {
        "comparisons": len(comparisons),
        **share(np.ones(len(right), dtype=bool)),
        "by_margin": by_margin,
        "by_length": _by_length((lengths[better] + lengths[worse]) / 2, share),
        "by_longer": [
            {"longer": name, **share(longer == sign)} for name, sign in (("better", 1), ("worse", -1), ("neither", 0))
        ],
        "calibration": _calibration(difference / gain, owner),
        "length_correlation": _correlation(rewards, lengths),
        "length_correlation_of_ratings": _correlation(_ratings(comparisons), lengths),
    }


def write_pairs(path: Path, rewards: np.ndarray, comparisons: Comparisons) -> None:
    """One row a comparison, so that two reward models can be compared pair by pair: row_id, `right` (the mean over its
    pairs) and margin, null where there is none."""
    better, worse, owner = (places.numpy() for places in pairs(comparisons.sizes()))
    right = _right(rewards[better] - rewards[worse])
    columns = {
        "row_id": [one.row_id for one in comparisons],
        "right": np.bincount(owner, right) / np.bincount(owner),
        "margin": [one.margin for one in comparisons],
    }
    schema = pa.schema([("row_id", pa.string()), ("right", pa.float64()), ("margin", pa.float64())])
    with ParquetRows(path, schema) as file:
        file.write(columns)


def _right(difference: np.ndarray) -> np.ndarray:
    return (difference > 0) + 0.5 * (difference == 0)


def accuracy(right: np.ndarray, owner: np.ndarray) -> dict | None:
    """{"value", "low", "high"}: mean over the comparisons of the mean over their pairs; None without a pair.

    right: 1, 0 or 0.5 a pair [P]; owner: which comparison it belongs to [P].
    """
    if not len(right):
        return None
    _, owner, counts = np.unique(owner, return_inverse=True, return_counts=True)
    means = np.bincount(owner, right) / counts
    low, high = wilson_interval(float(means.sum()), len(means))
    return {"value": float(means.mean()), "low": low, "high": high}


def _margins(comparisons: Comparisons, owner: np.ndarray) -> np.ndarray:
    """Difference of the human ratings of each pair [P]; nan where there is none."""
    found = []
    for one in comparisons:
        K = len(one.rows)
        if one.ratings is not None:
            found += [one.ratings[i] - one.ratings[j] for i in range(K) for j in range(i + 1, K)]
        else:
            found += [math.nan if one.margin is None else one.margin] * (K * (K - 1) // 2)
    return np.array(found)


def _human(comparisons: Comparisons, chosen: np.ndarray, name: str) -> float | None:
    """Mean of a human figure over the comparisons of these pairs; None where people gave none."""
    values = [comparisons[i].humans[name] for i in np.unique(chosen).tolist()]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _ratings(comparisons: Comparisons) -> np.ndarray:
    return np.array([rating for one in comparisons for rating in one.ratings or [math.nan] * len(one.rows)])


def _by_length(lengths: np.ndarray, share) -> list[dict]:
    """Groups between the quantiles of the pairs' mean length; equal lengths stay together."""
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, GROUPS + 1)))
    if len(edges) == 1:
        return [{"tokens_from": float(edges[0]), "tokens_to": float(edges[0]), **share(lengths == edges[0])}]
    group = np.clip(np.searchsorted(edges, lengths, side="right") - 1, 0, len(edges) - 2)
    return [
        {"tokens_from": float(edges[i]), "tokens_to": float(edges[i + 1]), **share(group == i)}
        for i in range(len(edges) - 1)
    ]


def _calibration(difference: np.ndarray, owner: np.ndarray) -> dict:
    """Of p(win). A pair says the same from either side, so confidence is at least a half; the pairs of a ranking count
    together as one row, as if they all said the same. Brier score and NLL: bootstrap over comparisons."""
    p = torch.sigmoid(torch.from_numpy(difference.astype(np.float64))).numpy()
    weights = 1.0 / np.bincount(owner)[owner]
    confidence, right = np.maximum(p, 1 - p), _right(difference)
    bins, place = calibration.bins_of(confidence, right, weights), calibration.place_of(confidence)
    chances, first = np.stack([p, 1 - p], axis=1), np.zeros(len(p), dtype=int)
    counts = resamples(owner.max() + 1, RESAMPLES, seed=0)
    rows = [
        {
            "low": i / calibration.BINS,
            "high": (i + 1) / calibration.BINS,
            "pairs": int((place == i).sum()),
            "confidence": float(bins.confidence[k]),
            "accuracy": float(bins.right[k]),
        }
        for k, i in enumerate(np.unique(place).tolist())
    ]
    return {
        "error": calibration.calibration_error(bins),
        **{
            name: estimate(np.bincount(owner, weights * score(chances, first)), np.ones(counts.shape[1]), counts)
            for name, score in (("brier", metrics.brier), ("nll", metrics.nll))
        },
        "ece": calibration.plain_error(bins),
        "bins": rows,
    }


def _correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Pearson's; None where a value is missing or nothing varies."""
    if len(x) < 2 or np.isnan(x).any() or x.std() == 0 or y.std() == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])
