"""What a filter finds in a text, and the text without it.

    finding   (kind, start, end): text[start:end] is an e-mail address, a card number, a forbidden phrase, ...
    masked    the text with <KIND> in the place of each finding; all other characters stay as they are
"""

from collections.abc import Iterable
from typing import NamedTuple

# Kinds whose form has no end of its own: over the seam of two texts `a@b.org` would swallow the `Thanks` that follows.
# All others are lists or have a check, which the longer one has to pass too.
ENDLESS = ("email",)


class Finding(NamedTuple):
    """A part of a text, and what kind of thing it is."""

    kind: str
    start: int
    end: int


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """The findings in order, those that overlap made one, which has the kind of the first (of the longest of these)."""
    found: list[Finding] = []
    for one in sorted(findings, key=lambda one: (one.start, -one.end, one.kind)):
        if found and one.start < found[-1].end:
            found[-1] = found[-1]._replace(end=max(found[-1].end, one.end))
        else:
            found.append(one)
    return found


def masked(text: str, findings: Iterable[Finding]) -> str:
    """The text with a placeholder for each finding: `a@b.org` -> `<EMAIL>`."""
    parts, done = [], 0
    for one in merged(findings):
        parts += [text[done : one.start], placeholder(one.kind)]
        done = one.end
    return "".join([*parts, text[done:]])


def placeholder(kind: str) -> str:
    """What stands for a finding of this kind."""
    return f"<{kind.upper()}>"
