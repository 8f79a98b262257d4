"""Krippendorff's alpha: agreement beyond what chance would give, by the library `krippendorff`.

    alpha = 1 - D_o / D_e      D_o: disagreement seen inside units, D_e: that of values drawn at random from all of them

Of a pair the value is which answer is better, 0 or 1 (nominal); which answer is 0 is decided by the pair's id, so that
neither value is the usual one. A tie is no value.

    judge            two coders: the judge, and the people's mean
    one_against_rest two coders: one person, and the mean of all the others; the k-th rater of both texts is a person
    people           of the single ratings of the texts themselves (interval), as many coders as raters

The first two are the same question put to the judge and to a person. A person who gave both texts one rating has no
value here and counts a half in the card's `one_against_rest`, so a person's alpha is above twice that minus 1.

The library is GPL-3.0, so Ajuste asks for it and does not bring it: extra `judges`.
"""

from collections.abc import Sequence
from types import ModuleType

import numpy as np

from ajuste.core.errors import UsageError


def of_labels(one: np.ndarray, other: np.ndarray) -> float | None:
    """Of two coders' labels 0 and 1 [N], nan where there is none. None where only one value comes up."""
    both = np.stack([one, other])
    known = both[:, ~np.isnan(both).any(axis=0)]
    return None if len(np.unique(known)) < 2 else _alpha(reliability_data=known, level_of_measurement="nominal")


def of_ratings(texts: Sequence[Sequence[float]]) -> float | None:
    """Of the ratings of each text (a list each), on an interval scale. None where all are alike, or one a text."""
    rated = [text for text in texts if len(text) > 1]
    values = sorted({value for text in rated for value in text})
    if len(values) < 2:
        return None
    place = {value: i for i, value in enumerate(values)}
    counts = np.zeros((len(rated), len(values)))
    for row, text in zip(counts, rated, strict=True):
        np.add.at(row, [place[value] for value in text], 1)
    return _alpha(value_counts=counts, value_domain=values, level_of_measurement="interval")


def persons(first: Sequence[float], second: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The labels of each person and of all the others [K], 1 where the second text is better, nan for a tie.

    first, second: the ratings of the two texts; K is the shorter length.
    """
    K = min(len(first), len(second))
    if K < 2:
        return np.zeros(0), np.zeros(0)
    a, b = np.asarray(first, float), np.asarray(second, float)
    rest = [(part.sum() - part[:K]) / (len(part) - 1) for part in (a, b)]
    return _label(a[:K] - b[:K]), _label(np.round(rest[0] - rest[1], 9))


def _label(difference: np.ndarray) -> np.ndarray:
    return np.where(difference == 0, np.nan, (difference < 0).astype(float))


def library() -> ModuleType:
    """The library. Raises UsageError that says how to get it."""
    try:
        import krippendorff
    except ImportError:
        raise UsageError("judge cards need the library `krippendorff`: pip install 'ajuste[judges]'") from None
    return krippendorff


def _alpha(**values: object) -> float:
    return float(library().alpha(**values))
