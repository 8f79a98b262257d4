"""The judge card: what a judge's labels are worth, on pairs that people have judged.

    agreement          share of pairs whose better answer, by the people's mean, the judge prefers (P > 1/2); a tie
                       counts a half, and so does no opinion
    one_against_rest   how often one person says what all others say, on the very same pairs: the ceiling
                       (ajuste/learning/statistics/agreement.py)
    share_of_ceiling   the one over the other, both summed over the pairs whose raters are known
    alpha              Krippendorff's, of judge and people, of one person and the rest, and of people's ratings
    swap_consistency   share of pairs of which both orders name the same answer
    position_bias      mean of P(A) - 1/2 over pairs and orders: above 0 the judge likes what it reads first
    length_bias        how often the judge prefers the longer text minus how often people do; equal lengths are left out
    cost               questions and tokens, and tokens a pair

    refused            agreement <= min_share_of_ceiling * one_against_rest, or swap_consistency < min_swap_consistency

Intervals: 2.5 % and 97.5 % percentiles of a bootstrap over pairs. Differs from the RLAIF paper, which reports alignment
and position bias alone and refuses nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pydantic import Field

from ajuste.core.params import Config
from ajuste.judging.judges import alpha
from ajuste.judging.judges.opinions import Cost, Opinion, Pair
from ajuste.learning.statistics.metrics import Resamples, estimate, percentile_interval, resamples

MARGINS = (0.5, 1.0, 1.5, 2.5)
NOISE = 1e-9  # of a sum of shares


class Admission(Config):
    """When a judge's labels may train."""

    min_share_of_ceiling: float = Field(ge=0, le=1, description="Of one person's agreement with the rest; above it.")
    min_swap_consistency: float = Field(ge=0, le=1, description="Share of pairs judged alike in both orders; at least.")


class Judged(NamedTuple):
    """A pair that people have judged. better: 0 or 1, the answer with the higher mean. raters: of both answers."""

    pair: Pair
    better: int
    margin: float | None
    one_against_rest: float | None
    raters: tuple[list[float], list[float]] | None


def card(judged: Sequence[Judged], opinions: Sequence[Opinion], cost: Cost, bootstrap: int, seed: int) -> dict:
    """The figures above, without `refused`. bootstrap: resamples. Raises ValueError without a pair."""
    if not judged:
        raise ValueError("no pair to judge the judge by")
    N = len(judged)
    counts, ones = resamples(N, bootstrap, seed), np.ones(N)
    preference = np.array([opinion.preference for opinion in opinions]) - 0.5
    better = np.array([1.0 if one.better == 0 else -1.0 for one in judged])
    right = _same(preference, better)
    consistent = np.array([opinion.consistent for opinion in opinions], dtype=float)
    problems = [opinion.problem for opinion in opinions if opinion.problem]
    return {
        "pairs": N,
        "no_opinion": {"pairs": len(problems), "first": problems[0] if problems else None},
        "agreement": estimate(right, ones, counts),
        **_ceiling(right, judged, bootstrap, seed),
        "by_margin": _by_margin(right, judged),
        "alpha": _alphas(preference, judged, counts),
        "swap_consistency": estimate(consistent, ones, counts),
        "agreement_where_consistent": _ratio(right * consistent, consistent, counts),
        "position_bias": _position(opinions, counts),
        "length_bias": _length(preference, better, judged, bootstrap, seed),
        "cost": {"calls": cost.calls, "tokens": cost.tokens, "tokens_a_pair": cost.tokens / N},
    }


def refusals(card: dict, rule: Admission) -> list[str]:
    """Why the judge's labels may not train, with the numbers; empty if they may."""
    found, ceiling = [], card["one_against_rest"]
    swap = card["swap_consistency"]["value"]
    if ceiling is None:
        found.append("how well people agree with each other on these pairs is not known, so there is no ceiling")
    elif card["agreement"]["value"] <= rule.min_share_of_ceiling * ceiling["value"] + NOISE:
        least = rule.min_share_of_ceiling * ceiling["value"]
        found.append(
            f"it agrees with people on {card['agreement']['value']:.3f} of {card['pairs']} pairs, and must be above "
            f"{least:.3f}, which is {rule.min_share_of_ceiling:g} of the {ceiling['value']:.3f} of one person against "
            "the rest"
        )
    if swap < rule.min_swap_consistency - NOISE:
        found.append(
            f"its verdict survives a change of order on {swap:.3f} of the pairs, and must on "
            f"{rule.min_swap_consistency:g}"
        )
    return found


# --- the figures ------------------------------------------------------------------------------------------------------


def _same(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """1 for the same sign, 0 for opposite ones, 1/2 where one is 0."""
    return np.sign(one) * np.sign(other) / 2 + 0.5


def _ratio(sums: np.ndarray, weights: np.ndarray, counts: Resamples) -> dict | None:
    """sum(sums) / sum(weights) with its interval; None where every weight is 0."""
    if not weights.any():
        return None
    return estimate(sums, weights, counts)


def _ceiling(right: np.ndarray, judged: Sequence[Judged], bootstrap: int, seed: int) -> dict:
    known = np.array([one.one_against_rest is not None for one in judged])
    if not known.any():
        return {"one_against_rest": None, "share_of_ceiling": None}
    human = np.array([one.one_against_rest for one in judged if one.one_against_rest is not None])
    counts = resamples(len(human), bootstrap, seed)
    return {
        "one_against_rest": estimate(human, np.ones(len(human)), counts),
        "share_of_ceiling": _ratio(right[known], human, counts),
    }


def _by_margin(right: np.ndarray, judged: Sequence[Judged]) -> list[dict]:
    found = []
    for margin in MARGINS:
        chosen = [i for i, one in enumerate(judged) if one.margin is not None and one.margin >= margin - NOISE]
        human = [judged[i].one_against_rest for i in chosen if judged[i].one_against_rest is not None]
        found.append({
            "margin": margin, "pairs": len(chosen), "agreement": float(right[chosen].mean()) if chosen else None,
            "one_against_rest": float(np.mean(human)) if human else None,
        })  # fmt: skip
    return found


def _alphas(preference: np.ndarray, judged: Sequence[Judged], counts: Resamples) -> dict:
    says = np.where(preference == 0, np.nan, (preference < 0).astype(float))
    people = np.array([float(one.better) for one in judged])
    value = alpha.of_labels(says, people)
    times = (row.astype(int) for row in counts)
    drawn = [alpha.of_labels(np.repeat(says, row), np.repeat(people, row)) for row in times]
    bounds = percentile_interval(np.array([x for x in drawn if x is not None], dtype=float))
    rated = [one.raters for one in judged if one.raters]
    persons = [alpha.persons(*raters) for raters in rated]
    one, rest = (np.concatenate([part[side] for part in persons]) if persons else np.zeros(0) for side in (0, 1))
    return {
        "judge": None if value is None else {"value": value, "low": bounds[0], "high": bounds[1]},
        "one_against_rest": alpha.of_labels(one, rest),
        "people": alpha.of_ratings([text for raters in rated for text in raters]),
    }


def _position(opinions: Sequence[Opinion], counts: Resamples) -> dict:
    """P(A) is p_1 in the one order and 1 - p_2 in the other: their mean is (p_1 - p_2) / 2 above 1/2."""
    first = np.array([opinion.first for opinion in opinions])
    second = np.array([opinion.second for opinion in opinions])
    return {
        **estimate((first - second) / 2, np.ones(len(first)), counts),
        "always_first": float(((first > 0.5) & (second < 0.5)).mean()),
        "always_second": float(((first < 0.5) & (second > 0.5)).mean()),
    }


def _length(preference: np.ndarray, better: np.ndarray, judged: Sequence[Judged], bootstrap: int, seed: int) -> dict:
    lengths = np.array([[len(text) for text in one.pair.answers] for one in judged], dtype=float)
    longer = lengths[:, 0] - lengths[:, 1]
    unequal = longer != 0
    if not unequal.any():
        return {"pairs": 0, "judge": None, "people": None, "difference": None}
    counts, ones = resamples(int(unequal.sum()), bootstrap, seed), np.ones(int(unequal.sum()))
    judge, people = (_same(signs[unequal], longer[unequal]) for signs in (preference, better))
    columns = {"judge": judge, "people": people, "difference": judge - people}
    return {"pairs": len(ones), **{name: estimate(column, ones, counts) for name, column in columns.items()}}
