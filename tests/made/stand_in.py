"""In place of Great Expectations: what its expectations mean, in a twentieth of the time.

    stand_in(monkeypatch)      from now on the judge of every validation

For tests of what is read and kept. That expectations themselves judge so, the tests of the stages show, and the slow
run of tests/rows/test_any_file.py.
"""

import re

import pandas as pd
import pytest

from ajuste.rows.checks import validation
from ajuste.rows.checks.expectations import Judge


def stand_in(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Judge, "__init__", lambda self: None)
    patch.setattr(validation, "_judge", Judge)  # none of these is kept for the tests after this one
    patch.setattr(Judge, "judge", judged)


def judged(self: Judge, frame: pd.DataFrame, expectations: list) -> dict[str, list[int]]:
    """What Great Expectations answers, by what its expectations mean; a text that it could not hash is an error."""
    for name in frame:
        for value in frame[name]:
            if isinstance(value, str):
                value.encode("utf-8")
    return {expectation.meta["check"]: failing(frame, expectation) for expectation in expectations}


def failing(frame: pd.DataFrame, expectation) -> list[int]:
    kind = type(expectation).__name__
    if kind == "ExpectTableColumnsToMatchSet":
        return [] if set(expectation.column_set) <= set(frame.columns) else [-1]
    if kind == "ExpectColumnPairValuesToBeEqual":
        a, b = frame[expectation.column_A], frame[expectation.column_B]
        return [int(row) for row in frame["row"][a.notna() & b.notna() & (a != b)]]
    column = frame[expectation.column]
    there = column.notna()
    if kind == "ExpectColumnValuesToBeNull":
        return [int(row) for row in frame["row"][there]]
    bad = column[there].map(lambda value: not fits(value, kind, expectation)).astype(bool)
    return [int(row) for row in frame["row"][there][bad]]


def fits(value, kind: str, expectation) -> bool:
    if kind in ("ExpectColumnValuesToMatchRegex", "ExpectColumnValuesToNotMatchRegex"):
        return (re.search(expectation.regex, str(value)) is not None) == (kind == "ExpectColumnValuesToMatchRegex")
    if kind == "ExpectColumnValuesToBeInSet":
        return value in expectation.value_set
    number = len(value) if kind == "ExpectColumnValueLengthsToBeBetween" else value
    assert kind in ("ExpectColumnValuesToBeBetween", "ExpectColumnValueLengthsToBeBetween"), kind
    least, most = expectation.min_value, expectation.max_value
    return (least is None or number >= least) and (most is None or number <= most)
