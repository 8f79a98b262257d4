"""How often may the same test rows be asked? A budget of false promotions, spent look by look.

Each look at the same rows is a chance that a challenger without any gain looks better. So the budget is spread over
`looks` looks, and look k tests at

    level(k) = budget / (k H),   H = 1 + 1/2 + ... + 1/looks

    P(any false promotion in `looks` looks) <= sum_k level(k) = budget        whatever binds the challengers together

The sum is a union bound: it asks nothing of the order, the number or the likeness of the challengers, which are all
judged on the same rows beside the same champion. A confidence sequence would not do: it follows rows as they come,
and here no row comes from one look to the next. Levels fall as 1/k, so that the first looks, when a project changes
most, are the sharp ones; the last is still 1/looks of the first. After `looks` looks nothing is left.

Rows that no look has seen bring budget back. With a share f of today's rows fresh, k looks count as ceil((1 - f) k):

    level(ceil((1 - f) k) + 1) + ... + level(k) <= f budget

so that all fresh rows are a whole budget, and one row more a night is next to nothing. What was seen is remembered as
a sample: the SAMPLE smallest digests of row ids. Up to SAMPLE rows the share is exact, beyond it is an estimate.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

SAMPLE = 256


@dataclass(frozen=True)
class Ledger:
    """What is remembered of one metric of a registered name. rows: the digest of the rows of the last look."""

    used: int = 0
    rows: str = ""
    seen: tuple[str, ...] = ()


@dataclass(frozen=True)
class Look:
    """One look: its number, and what it was at. `of` is a digest of challenger, champion and rows."""

    number: int
    of: str


def level(budget: float, looks: int, number: int) -> float:
    """The one-sided level of a look, counted from 1; 0 after the last."""
    return budget / (number * _harmonic(looks)) if number <= looks else 0.0


def left(budget: float, looks: int, used: int) -> float:
    """What is left of the budget after so many looks."""
    return max(0.0, budget * (1 - _harmonic(min(used, looks)) / _harmonic(looks)))


def refreshed(ledger: Ledger, ids: Iterable[str]) -> Ledger:
    """The ledger on today's rows: fresh ones bring looks back, and count as seen from now on."""
    found = [str(one) for one in ids]
    today, digest = sorted(map(_digest, found)), rows_digest(found)
    if digest == ledger.rows:
        return ledger
    used = math.ceil(round((1 - _fresh(ledger, today)) * ledger.used, 9))
    return Ledger(used, digest, tuple(sorted({*ledger.seen, *today})[:SAMPLE]))


def spent(ledger: Ledger) -> Ledger:
    """The ledger after one look more."""
    return replace(ledger, used=ledger.used + 1)


def rows_digest(ids: Iterable[str]) -> str:
    """A digest of a set of row ids, whatever their order."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()[:16]


def _fresh(ledger: Ledger, today: list[str]) -> float:
    """Share of today's rows that no look saw: of those whose digests the sample would hold."""
    if not ledger.seen:
        return 1.0
    within = [one for one in today if len(ledger.seen) < SAMPLE or one <= ledger.seen[-1]]
    return sum(one not in ledger.seen for one in within) / len(within) if within else 0.0


def _digest(one: str) -> str:
    return hashlib.sha256(one.encode()).hexdigest()[:12]


def _harmonic(number: int) -> float:
    return sum(1 / k for k in range(1, number + 1))
