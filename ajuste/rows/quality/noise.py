"""Label noise of comparisons: pairs of which a simple judge, who never saw them, says the opposite with confidence.

    phi(y)   TF-IDF of the words and pairs of words of a response, hashed to 2^18 places, 1 + log(count), length 1
    p        = sigmoid(w . (phi(chosen) - phi(rejected))): logistic regression without intercept, so p of the swapped
             pair is 1 - p, fitted on the other folds; a fold holds whole prompts (of rated texts: pairs)
    suspect  1 - p >= t, where t is the mean p of all pairs, at least 1/2: as sure of the opposite as it is of the
             average label (confident learning, Northcutt et al. 2021, for two classes that mirror each other)

The judge reads words, not meaning: a suspect is a pair to look at, not a verdict, and an accuracy near 0.5 says that
the judge knows nothing, so neither does this report. Where people's agreement is known, that of the suspects stands
beside that of all others: suspects are worth their name if people agree less on them. Of more than MOST pairs the
lowest row ids are judged. The prompt cancels out of the difference.
"""

import heapq
from pathlib import Path

import numpy as np

from ajuste.learning.statistics.metrics import wilson_interval
from ajuste.rows.parquet import GROUP_ROWS, read_batches
from ajuste.rows.quality.report import digest

MOST, LEAST = 5000, 100
FOLDS = 5
PLACES = 1 << 18
MAX_CHARS = 4000  # of a response
SHOWN = 20


def label_noise(path: Path) -> dict | None:
    """The report on the comparisons of a split; None if they are too few to judge."""
    rows = _lowest(path)
    if len(rows) < LEAST:
        return None
    rows.sort()
    p = judge([row[2] for row in rows], [row[3] for row in rows], np.array([row[4] for row in rows]))
    right = int((p > 0.5).sum())
    low, high = wilson_interval(right, len(p))
    threshold = max(p.mean(), 0.5)
    suspects = 1 - p >= threshold
    known = np.array([np.nan if row[5] is None else row[5] for row in rows])
    order = [i for i in np.argsort(p, kind="stable") if suspects[i]]
    return {
        "pairs": len(p),
        "accuracy": round(right / len(p), 4), "low": round(low, 4), "high": round(high, 4),
        "threshold": round(float(threshold), 4),
        "suspected": int(suspects.sum()),
        "agreement": {name: _mean(known[chosen]) for name, chosen in (("suspects", suspects), ("others", ~suspects))},
        "suspects": [{"location": rows[i][1], "probability": round(float(p[i]), 4)} for i in order[:SHOWN]],
    }  # fmt: skip


def judge(chosen: list[str], rejected: list[str], folds: np.ndarray) -> np.ndarray:
    """Probability [pairs] that the chosen response is the better one, by a model fitted on the other folds."""
    from scipy.sparse import vstack
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    from sklearn.linear_model import LogisticRegression

    words = HashingVectorizer(n_features=PLACES, ngram_range=(1, 2), alternate_sign=False, norm=None,
                              token_pattern=r"(?u)\b\w+\b")  # fmt: skip
    better, worse = (words.transform(text[:MAX_CHARS] for text in side) for side in (chosen, rejected))
    sign = np.where(np.arange(len(chosen)) % 2, 1.0, -1.0)  # both classes are seen as often
    p = np.full(len(chosen), 0.5)
    for fold in np.unique(folds):
        held, fitted = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        if len(fitted) < 2:
            continue
        weigh = TfidfTransformer(sublinear_tf=True).fit(vstack([better[fitted], worse[fitted]]))
        difference = (weigh.transform(better) - weigh.transform(worse)).tocsr()
        model = LogisticRegression(C=4.0, fit_intercept=False, max_iter=200)
        model.fit(difference[fitted].multiply(sign[fitted][:, None]).tocsr(), sign[fitted])
        p[held] = model.predict_proba(difference[held])[:, 1]
    return p


def _lowest(path: Path) -> list[tuple[str, str, str, str, int, float | None]]:
    """(row id, location, best, worst, fold, agreement) of the lowest row ids; a heap of at most MOST rows."""
    heap: list[tuple] = []
    names = ["row_id", "prompt", "responses", "location", "agreement"]
    for batch in read_batches(path, GROUP_ROWS, names):
        for row in batch.to_pylist():
            key = -int(row["row_id"], 16)
            if len(heap) == MOST and key <= heap[0][0]:
                continue
            asked = "\n".join(turn["content"] for turn in row["prompt"])
            item = (key, row["location"], row["responses"][0], row["responses"][-1], digest(asked), row["row_id"],
                    row["agreement"])  # fmt: skip
            heapq.heapreplace(heap, item) if len(heap) == MOST else heapq.heappush(heap, item)
    one_prompt = len({item[4] for item in heap}) == 1
    return [(item[5], *item[1:4], (int(item[5], 16) if one_prompt else item[4]) % FOLDS, item[6]) for item in heap]


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return round(float(known.mean()), 4) if len(known) else None
