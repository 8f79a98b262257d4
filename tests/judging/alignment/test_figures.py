"""Scores of shares and means: values, intervals and units, as the ledger takes them."""

import numpy as np
import pytest

from ajuste.judging.alignment import figures
from ajuste.judging.alignment.ledger import ledger
from ajuste.learning.statistics.metrics import resamples, wilson_interval

HITS = {"a": True, "b": False, "c": True, "d": True}


def test_a_share_has_wilsons_interval_and_its_units() -> None:
    found = figures.share("honest", "it", "higher", HITS, "question", None)
    assert (found["value"], found["n"]) == (0.75, 4) and (found["low"], found["high"]) == wilson_interval(3, 4)
    assert found["units"] == {"a": 1.0, "b": 0.0, "c": 1.0, "d": 1.0} and "detail" not in found


def test_a_mean_has_a_bootstrap_interval_over_its_units() -> None:
    values = {str(i): i % 3 / 2 for i in range(30)}
    found = figures.mean("helpful", "win_rate", "higher", values, "prompt", "somebody", 200, 0)
    drawn = [np.average(list(values.values()), weights=count) for count in resamples(30, 200, 0)]
    assert found["value"] == pytest.approx(0.5)
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))


def test_groups_are_details_of_the_whole_and_the_ledger_takes_them() -> None:
    found = figures.by("honest", "it", "lower", HITS, {"a": "en", "b": "en", "c": "es", "d": "es"}, "question", "rules")
    assert [(one["name"], one["value"], one["n"], one.get("detail", False)) for one in found] == [
        ("it", 0.75, 4, False), ("it.en", 0.5, 2, True), ("it.es", 1.0, 2, True)
    ]  # fmt: skip
    assert len(ledger({"model": "base", "scores": found}, "here").scores) == 3
