"""How a score of the ledger is made of what was measured, a value a unit that was drawn.

    share    value = k/n of units with 1, Wilson's interval
    mean     value = the mean of the units' values; a 95 % percentile bootstrap interval over units

Both keep the units, so that two models can be compared pair by pair (ajuste/judging/alignment/ledger.py); details,
which decide nothing, do not.
"""

from typing import Literal

import numpy as np

from ajuste.learning.statistics.metrics import estimate, resamples, wilson_interval

H = Literal["helpful", "honest", "harmless"]
Better = Literal["higher", "lower", "neither"]


def share(
    h: H, name: str, better: Better, hits: dict[str, bool], unit: str, judge: str | None, detail: bool = False
) -> dict:
    """The score of a share of units, by their ids."""
    low, high = wilson_interval(sum(hits.values()), len(hits))
    value = sum(hits.values()) / len(hits)
    units = {name: float(hit) for name, hit in hits.items()}
    return _score(h, name, better, {"value": value, "low": low, "high": high}, units, unit, judge, detail)


def mean(
    h: H, name: str, better: Better, values: dict[str, float], unit: str, judge: str | None, bootstrap: int, seed: int
) -> dict:  # fmt: skip
    """The score of a mean over units, by their ids. bootstrap: resamples of them."""
    sums = np.array(list(values.values()), dtype=float)
    found = estimate(sums, np.ones(len(sums)), resamples(len(sums), bootstrap, seed))
    return _score(h, name, better, found, values, unit, judge, False)


def by(
    h: H, name: str, better: Better, hits: dict[str, bool], groups: dict[str, str], unit: str, judge: str | None
) -> list[dict]:
    """The share, and as details the same of each group of units: groups has the group of each id."""
    parts = {group: {key: hit for key, hit in hits.items() if groups[key] == group}
             for group in sorted(set(groups.values()))}  # fmt: skip
    return [share(h, name, better, hits, unit, judge)] + [
        share(h, f"{name}.{group}", better, some, unit, judge, detail=True) for group, some in parts.items()
    ]


def _score(
    h: H, name: str, better: Better, found: dict[str, float], units: dict[str, float], unit: str, judge: str | None,
    detail: bool,
) -> dict:  # fmt: skip
    return {
        "h": h, "name": name, "better": better, **found, "n": len(units), "unit": unit, "judge": judge,
        "corrected": None, **({"detail": True} if detail else {"units": units}),
    }  # fmt: skip
