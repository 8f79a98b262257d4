"""Markdown of the cards: tables, and numbers as their records have them.

A number is shown at the 6 digits that figures are written with (ajuste/core/figures.py), so that whoever compares a
card with a record compares equal numbers. A cell is never empty: what is not known is said.
"""

from collections.abc import Mapping, Sequence

from ajuste.core.figures import DIGITS


def number(value: object) -> str:
    """136957248 -> 136957248, 0.80357142 -> 0.803571; text that is a number as that number."""
    value = float(value) if isinstance(value, str) else value
    if isinstance(value, int) or float(value).is_integer():
        return str(int(value))
    return f"{value:.{DIGITS}g}"


def interval(values: Mapping[str, object], key: str = "value", low: str = "low", high: str = "high") -> tuple[str, str]:
    """(the figure, its 95 % interval) as two cells; what has no interval says so."""
    bounds = [values.get(low), values.get(high)]
    known = None not in bounds
    return number(values[key]), f"{number(bounds[0])} to {number(bounds[1])}" if known else "none was computed"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table. Raises ValueError for an empty cell: a card has none."""
    for row in rows:
        if len(row) != len(head) or not all(cell.strip() for cell in row):
            raise ValueError(f"a card may have no empty cell: {row}")
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |"
                     for line in lines)


def points(lines: Sequence[str]) -> str:
    """A list."""
    return "\n".join(f"- {line}" for line in lines)
