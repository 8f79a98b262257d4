"""What people agree on: how sure a comparison of two rated texts is, and how well people themselves would do on it.

Text a has ratings a_1..a_n, text b has b_1..b_m, of other raters; the better mean is the chosen one. With
win(x, y) = 1 if x > y, 1/2 if x = y, else 0:

    agreement         (1/nm) sum_ij win(a_i, b_j)
                      the chance that a rater of the chosen text rates above a rater of the rejected: the soft label
    one against rest  (1/nm) sum_ij same(a_i - b_j, mean of a without i - mean of b without j)
                      how often one person says what all the others say
    split half        mean over splits of same(mean a' - mean b', mean a'' - mean b'')
                      a', a'' random halves of the raters of a, b', b'' of b: how often two half crowds agree

same(u, v) = 1 if both have one sign, 0 if they have opposite ones, 1/2 if either is 0. A reward model that is right
more often than one against the rest is as good as a person; above split half there is little left to learn. Margins
are means of all raters, so pairs chosen by margin flatter people a little, as they flatter the model. Numpy alone: no
text.
"""

import numpy as np

MARGINS = (0.5, 1.0, 1.5, 2.5)
SPLITS = 32  # random halves a pair


def agreement(chosen: list[float], rejected: list[float]) -> float:
    """Chance that a rater of the chosen text rates above one of the rejected, ties half. Lists of ratings."""
    difference = np.subtract.outer(np.asarray(chosen, float), np.asarray(rejected, float))
    return float((np.sign(difference) / 2 + 0.5).mean())


def one_against_rest(chosen: list[float], rejected: list[float]) -> float | None:
    """How often one rater of each text orders the pair as all other raters do; None with fewer than two raters."""
    a, b = np.asarray(chosen, float), np.asarray(rejected, float)
    if min(len(a), len(b)) < 2:
        return None
    rest_a, rest_b = (_rounded((part.sum() - part) / (len(part) - 1)) for part in (a, b))
    return float(_same(np.subtract.outer(a, b), np.subtract.outer(rest_a, rest_b)).mean())


def split_half(chosen: list[float], rejected: list[float], generator: np.random.Generator) -> float | None:
    """How often two random halves of the raters order the pair alike; None with fewer than two raters."""
    halves = [_halves(np.asarray(part, float), generator) for part in (chosen, rejected) if len(part) > 1]
    if len(halves) < 2:
        return None
    first, second = (halves[0][half] - halves[1][half] for half in (0, 1))
    return float(_same(first, second).mean())


def by_margin(margins: np.ndarray, ones: np.ndarray, halves: np.ndarray) -> list[dict]:
    """The human figures of the pairs whose margin is at least each of MARGINS. Arrays [pairs], nan where unknown."""
    found = []
    for margin in MARGINS:
        chosen = (margins >= margin) & ~np.isnan(ones)
        figures = [round(float(part[chosen].mean()), 6) if chosen.any() else None for part in (ones, halves)]
        found.append({"margin": margin, "pairs": int(chosen.sum()), "one_against_rest": figures[0],
                      "split_half": figures[1]})  # fmt: skip
    return found


def _halves(ratings: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Means [2, SPLITS] of two disjoint halves; of an odd number of raters one is left out, another each time."""
    order = generator.permuted(np.tile(ratings, (SPLITS, 1)), axis=1)
    half = len(ratings) // 2
    return _rounded(np.stack([order[:, :half].mean(axis=1), order[:, half : 2 * half].mean(axis=1)]))


def _same(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.sign(one) * np.sign(other) / 2 + 0.5


def _rounded(means: np.ndarray) -> np.ndarray:
    """Equal means are equal whatever the order of the sum."""
    return np.round(means, 9)
