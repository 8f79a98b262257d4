"""The points of study methods beside each other: means, paired intervals, and which method is told from which.

Of prompt i and seed s: v_is, one answer's score. All methods answer the same prompts, so differences are paired:

    gain       mean over prompts and seeds of v_is - v_is of the SFT model          interval: bootstrap over prompts
    win        mean of 1 where the answer has the higher gold, 1/2 where equal, else 0; of the judge of words 1 where
               both orders prefer the answer, 0 where both prefer the SFT model's, and 1/2 where the order decides
    told       the first method by gold is told from another if the lower bound of their paired difference
               d_i = mean over seeds is above 0 (ajuste/learning/statistics/paired.py), and it is ahead with every seed

The first is compared with K - 1 others, each at level 0.025 / (K - 1), so a wrong winner is named in at most 1 of 40
such pages as far as prompts go (multiple comparisons with the best: only the pairs of the truly best one count).

    prompts to tell = M ((t + z) error / d)^2      so many prompts like these show a true difference d in 80 % of cases

Intervals are over prompts and hold for these trainings. What another seed would do, three seeds cannot say but roughly:
so the seeds' own means stand beside, lowest to highest.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ajuste.core.errors import DataError, UsageError
from ajuste.learning.statistics import metrics, paired
from studies.methods.shared import SFT, UNTRAINED, MethodsConfig

SEED = 0  # of the bootstrap
Points = dict[str, list[dict]]  # method -> its points, a seed each


def read(study: MethodsConfig, path_of: Callable[[str, int], Path]) -> Points:
    """All points. Raises UsageError for a missing one, DataError if they answered different prompts."""
    found: Points = {}
    for method in study.methods:
        found[method] = []
        for seed in study.seeds:
            try:
                found[method].append(json.loads(path_of(method, seed).read_text(encoding="utf-8")))
            except (OSError, ValueError):
                raise UsageError(f"{path_of(method, seed)} is missing or no JSON: run `ajuste study methods`") from None
    asked = [[row["id"] for row in point["rows"]] for points in found.values() for point in points]
    if any(ids != asked[0] for ids in asked):
        raise DataError("the points have answered different prompts: run `ajuste study methods` again")
    return found


def values(points: list[dict], name: str) -> np.ndarray:
    """A figure of each seed's answers: [S, P]."""
    return np.array([[row[name] for row in point["rows"]] for point in points], dtype=float)


def over_prompts(found: np.ndarray, bootstrap: int) -> dict:
    """{"value", "low", "high", "seeds"} of [S, P]: the mean, its interval over prompts, and each seed's mean."""
    prompts = found.shape[1]
    mean = metrics.estimate(found.mean(axis=0), np.ones(prompts), metrics.resamples(prompts, bootstrap, SEED))
    return {**mean, "seeds": found.mean(axis=1).tolist()}


def over_seeds(found: list[dict]) -> dict:
    """{"value", "seeds", "above", "below"} of one estimate a seed: their mean, and how many intervals exclude 0."""
    seeds = [one["value"] for one in found]
    return {"value": float(np.mean(seeds)), "seeds": seeds, "above": sum(one["low"] > 0 for one in found),
            "below": sum(one["high"] < 0 for one in found)}  # fmt: skip


# --- one method -------------------------------------------------------------------------------------------------------


def summary(method: str, points: Points, bootstrap: int) -> dict:
    """Every figure of a method, against the SFT model with the same seeds."""
    own, sft = points[method], points[SFT]
    report: dict = {"spent": own[0]["spent"], "alarms": [point["alarms"] for point in own]}
    for name in ("proxy", "gold", "tokens"):
        found = values(own, name)
        report[name] = {**over_prompts(found, bootstrap), "gain": over_prompts(found - values(sft, name), bootstrap)}
    report["kl"] = over_prompts(values(own, "kl"), bootstrap)
    ratios = [mine["distinct2"] / theirs["distinct2"] if mine["distinct2"] and theirs["distinct2"] else None
              for mine, theirs in zip(own, sft, strict=True)]  # fmt: skip
    report["distinct2"] = {"seeds": [point["distinct2"] for point in own], "ratios": ratios}
    if method != SFT:
        report["win"] = over_prompts(wins(values(own, "gold"), values(sft, "gold")), bootstrap)
        report["win_words"] = heard([point["opinions"] for point in own], bootstrap)
    report["lost"] = None if method in UNTRAINED else _lost([point["lost"] for point in own])
    return report


def wins(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """1, 1/2 or 0 for higher, equal and lower."""
    return (own > other) + 0.5 * (own == other)


def heard(opinions: list[list[dict]], bootstrap: int) -> dict:
    """The win rate by the judge of words, both orders needed, and the share of pairs where the order changed nothing.

    opinions: of each seed, of each answer P(it is better), shown first and shown second.
    """
    both = np.array([[(one["first"] - 0.5, one["second"] - 0.5) for one in some] for some in opinions])  # [S, J, 2]
    alike = both[..., 0] * both[..., 1] > 0
    won = np.where(alike, both[..., 0] > 0, 0.5)
    return {**over_prompts(won, bootstrap), "consistent": float(alike.mean()), "answers": both.shape[1]}


def _lost(found: list[dict]) -> dict:
    return {
        **{name: over_seeds([one[name] for one in found]) for name in ("displacement", "held_out", "rougeL")},
        "F": {name: over_seeds([one["F"][name] for one in found]) for name in found[0]["F"]},
        "rules": {name: [one["rules"][name] for one in found] for name in found[0]["rules"]},
    }  # fmt: skip


# --- which is which ---------------------------------------------------------------------------------------------------


def told(points: Points, wanted: float) -> dict:
    """The first method by gold, and each other one beside it.

    {"first", "level", "others": [{"method", "difference", "lower", "ahead", "seeds", "told", "seen", "prompts",
    "prompts_wanted"}]}: `ahead` of `seeds` the first has the higher mean; `seen`: the least true difference that these
    prompts show in 80 % of cases; `prompts` to tell this difference, None where there is none; the nearest first.
    """
    gold = {method: values(some, "gold") for method, some in points.items()}
    first = max(gold, key=lambda method: gold[method].mean())  # of equals the earlier
    level = paired.LEVEL / (len(gold) - 1)
    others = []
    for method in gold.keys() - {first}:
        difference = gold[first] - gold[method]
        gain = paired.gain(difference.mean(axis=0), level=level)
        ahead = int((difference.mean(axis=1) > 0).sum())
        others.append({
            "method": method, "difference": gain.value, "lower": gain.lower, "ahead": ahead, "seeds": len(difference),
            "told": gain.lower > 0 and ahead == len(difference), "seen": gain.seen,
            "prompts": gain.rows_for(gain.value) if gain.value > 0 else None,
            "prompts_wanted": gain.rows_for(wanted),
        })  # fmt: skip
    others.sort(key=lambda one: (one["difference"], one["method"]))
    return {"first": first, "level": level, "others": others}


def compared(study: MethodsConfig, points: Points) -> dict:
    """metrics/methods.json."""
    return {
        "prompts": len(points[SFT][0]["rows"]), "seeds": study.seeds, "samples": study.samples, "wanted": study.wanted,
        "methods": {method: summary(method, points, study.bootstrap) for method in points},
        "told": told(points, study.wanted),
    }  # fmt: skip
