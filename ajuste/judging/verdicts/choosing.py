"""Which of several versions, all made from one and judged on the same validation prompts, goes on as `challenger`.

    out        a version that the instruction evaluation finds worse, or whose gain is not surely above 0
    gain       the greatest lower bound of the gain over the version that all were made from; of two judges the one that
               is less convinced speaks, so a method that pleased the judge that chose its weights wins nothing by it
    KL         of those whose interval overlaps with that one's, the nearest to what they were made from
    cost       of those whose KL overlaps with the smallest, the one that took the fewest seconds to train; where some
               version's are not known, the one with the fewest trained parameters
    age        of equals the older one

A larger gain whose interval overlaps may be chance, and what is nearer has forgotten less. Evidence in, a choice and
its reason out: ajuste/tracking/registry/rank.py gathers the evidence and moves the alias.
"""

from dataclasses import dataclass

from ajuste.judging.verdicts.gate import Kept, not_worse


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def overlaps(self, other: "Interval") -> bool:
        """Whether the two share more than a point; an interval of no width has its point in common."""
        return self == other or max(self.low, other.low) < min(self.high, other.high)

    def said(self, form: str) -> str:
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"


@dataclass(frozen=True)
class Judged:
    """The gain over what a version was made from, as `by` (a judge, in words) sees it, and the KL to it."""

    gain: Interval
    by: str
    kl: Interval | None = None


@dataclass(frozen=True)
class Candidate:
    """A version. seconds: of its training, None if nobody measured them; lost: what it must not have lost and has."""

    version: str
    judged: Judged
    parameters: int
    seconds: float | None = None
    lost: str = ""


def choose(found: list[Candidate]) -> tuple[Candidate | None, str]:
    """(the one that goes on, why it and none of the others); None where no version is fit. found: oldest first."""
    out = [f"version {one.version} is out, {one.lost}" for one in found if one.lost]
    fit = [one for one in found if not one.lost and one.judged.gain.low > 0]
    if not fit:
        return None, "; ".join(out)
    best, why = _of_fit(fit)
    return best, "; ".join([*([why] if why else []), *out])


def _of_fit(fit: list[Candidate]) -> tuple[Candidate, str]:
    if len(fit) == 1:
        return fit[0], ""
    first = max(fit, key=lambda one: one.judged.gain.low)  # of equals the older one
    near = [one for one in fit if one is first or one.judged.gain.overlaps(first.judged.gain)]
    if len(near) == 1:
        others = ", ".join(f"{one.judged.gain.said('.4f')} of version {one.version}" for one in fit if one is not first)
        return first, f"a gain of {first.judged.gain.said('.4f')} is above {others}"
    names = _names(near)
    if all(one.judged.kl is not None for one in near):
        least = min(near, key=lambda one: one.judged.kl.value)
        alike = [one for one in near if one is least or one.judged.kl.overlaps(least.judged.kl)]
        if len(alike) == 1:
            return least, f"the gains of versions {names} overlap, and its KL of {least.judged.kl.said('.2f')} is less"
        near, names = alike, f"{_names(alike)} overlap, and so do their KLs"
    else:
        names += " overlap"
    if all(one.seconds is not None for one in near):
        best, what = min(near, key=lambda one: one.seconds), "seconds to train"
        figure = f"{best.seconds:.0f}"
    else:
        best, what = min(near, key=lambda one: one.parameters), "trained parameters"
        figure = f"{best.parameters:,}"
    return best, f"the gains of versions {names}; it has the fewest {what}, {figure}"


def _names(found: list[Candidate]) -> str:
    return ", ".join(one.version for one in found)


def lost(kept: list[Kept], margins: dict[str, float]) -> str:
    """What of the instruction evaluation is worse than before by more than its margin, in words; "" if nothing is.

    margins: of loss, rules and rouge, as the gate has them. What was not measured was not lost: the gate asks for it.
    """
    rules = [not_worse(one, margins[one.figure]) for one in kept]
    return "; ".join(f"{rule.name}: {rule.sentence}" for rule in rules if not rule.passed)
