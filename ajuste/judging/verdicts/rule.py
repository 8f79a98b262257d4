"""A rule of the gate with what it found: gate.py and the files beside it make them, reports and pages show them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """One rule with its numbers. `value` is what was found and `limit` what was asked; None where there is none."""

    name: str
    passed: bool
    value: float | None
    limit: float | None
    sentence: str
