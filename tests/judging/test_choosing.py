"""Which version goes on: each rule alone, in its order, with made versions."""

import pytest

from ajuste.judging.verdicts.choosing import Candidate, Interval, Judged, choose, lost
from ajuste.judging.verdicts.gate import Kept, Paired


def version(number: int, low: float, high: float, kl: tuple[float, float] | None = None, **more) -> Candidate:
    kl_of = Interval(sum(kl) / 2, *kl) if kl else None
    return Candidate(str(number), Judged(Interval((low + high) / 2, low, high), "gold", kl_of),
                     more.pop("parameters", 10), **more)  # fmt: skip


NEAR, FAR = (1.0, 1.4), (4.0, 6.0)
CASES = {
    "a clear winner, though it is far and dear": (
        [version(2, 0.05, 0.1, NEAR, seconds=1.0), version(3, 0.15, 0.25, FAR, seconds=99.0)],
        "3", "a gain of 0.2000 [0.1500, 0.2500] is above 0.0750 [0.0500, 0.1000] of version 2"),
    "the lower bound counts, not the value": (
        [version(2, 0.01, 0.6, None), version(3, 0.1, 0.12, None, parameters=9)],
        "3", "it has the fewest trained parameters, 9"),
    "overlapping gains go to the smaller KL": (
        [version(2, 0.1, 0.3, FAR, seconds=1.0), version(3, 0.08, 0.2, NEAR, seconds=99.0)],
        "3", "the gains of versions 2, 3 overlap, and its KL of 1.20 [1.00, 1.40] is less"),
    "the same KL goes to the smaller cost": (
        [version(2, 0.1, 0.3, (1.1, 1.5), seconds=200.0), version(3, 0.08, 0.2, (1.2, 1.6), seconds=90.0)],
        "3", "the gains of versions 2, 3 overlap, and so do their KLs; it has the fewest seconds to train, 90"),
    "without the seconds of one, trained parameters": (
        [version(2, 0.1, 0.3, NEAR, seconds=2.0), version(3, 0.1, 0.3, NEAR, parameters=5)],
        "3", "the fewest trained parameters, 5"),
    "equals go to the older": ([version(2, 0.1, 0.3, NEAR), version(3, 0.1, 0.3, NEAR)], "2", "parameters, 10"),
    "one that lost the instruction evaluation is out": (
        [version(2, 0.1, 0.2, NEAR), version(3, 0.5, 0.6, NEAR, lost="keeps loss: 2.4 against 2.0")],
        "2", "version 3 is out, keeps loss: 2.4 against 2.0"),
    "who does not overlap with the first is no matter of KL": (
        [version(2, 0.01, 0.05, NEAR), version(3, 0.1, 0.3, FAR), version(4, 0.2, 0.4, (7.0, 8.0))],
        "3", "the gains of versions 3, 4 overlap, and its KL of 5.00"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_rule(case: str) -> None:
    found, expected, why = CASES[case]
    best, said = choose(found)
    assert best.version == expected and why in said


def test_alone_it_needs_no_reason_and_a_gain_that_may_be_none_is_no_gain() -> None:
    assert choose([version(2, 0.1, 0.2)])[1] == ""
    assert choose([version(2, 0.0, 0.9), version(3, -0.1, 0.9)]) == (None, "")
    assert choose([version(2, 0.1, 0.2, lost="keeps rules: 0.1 against 0.9")])[0] is None


def test_what_is_lost_is_what_the_gate_would_refuse() -> None:
    rows = {i: (2.0 + i / 100, 1.0) for i in range(20)}
    worse = {i: (value + 0.2 + i / 1000, size) for i, (value, size) in rows.items()}
    same, more = (Kept("loss", Paired("version 1", own, rows)) for own in (rows, worse))
    margins = {"loss": 0.05, "rules": 0.2, "rouge": 0.1}
    assert lost([same], margins) == "" == lost([], margins)
    assert "keeps loss: 2.3045 against 2.0950 of version 1" in lost([same, more], margins)
    assert lost([more], {**margins, "loss": 0.5}) == ""
