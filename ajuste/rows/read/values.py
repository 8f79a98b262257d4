"""What a value of a file means, whatever its format: is it there, and what name is it.

    missing     null, NaN, an absent key; of a name also an empty text
    name        1, 1.0, Decimal("1.00") -> "1"; 0.5 -> "0.5"; true -> "true"; a text as it stands

A column of whole numbers with one gap becomes floats in pandas, Parquet and JSON; so 1.0 is the name 1. Of a text, as
CSV has it, that is true only where names are compared: `same_name`.
"""

import json
import re
from decimal import Decimal

WHOLE = re.compile(r"([+-]?\d+)\.0+")


def missing(value: object) -> bool:
    """Whether there is no value: None, or a number that is not one."""
    return value is None or (isinstance(value, float | Decimal) and value != value)


def present(values: dict[str, object]) -> dict[str, object]:
    """The same columns with None for every value that is missing."""
    return {key: None if missing(value) else value for key, value in values.items()}


def named(value: object) -> str | None:
    """A number or a truth value as a name; None for a value of another type."""
    if isinstance(value, bool | int):
        return json.dumps(value)
    if isinstance(value, float | Decimal):
        whole = value == value and abs(value) < 2**63 and value == int(value)
        return str(int(value)) if whole else str(value) if isinstance(value, Decimal) else json.dumps(value)
    return None


def same_name(text: str) -> str:
    """What two texts must share to be the same name: "1.0" is "1"."""
    match = WHOLE.fullmatch(text)
    return match[1] if match else text


def class_of(value: str, labels: list[str], names: dict[str, str] | None) -> str:
    """The class of a value of a file: by the map of names if there is one, and "1.0" is class "1"."""
    found = looked_up(names, value)
    if found in labels:
        return found
    return next((label for label in labels if same_name(label) == same_name(found)), found)


def looked_up(names: dict[str, str] | None, text: str) -> str:
    """The name that a map gives to a value of a file, "1.0" as "1"; of a value that it lacks the value itself."""
    if not names:
        return text
    if text in names:
        return names[text]
    return next((name for value, name in names.items() if same_name(value) == same_name(text)), text)
