"""How figures are written into what a stage leaves behind: JSON, JSON lines and columns of Parquet.

    rounded(x) = x at 6 significant digits            3.14159265 -> 3.14159        2.97e-07 -> 2.97e-07

Two processors that give equal weights still give figures whose last digits differ: a mean over another vector width, a
softmax with another last bit. Digits that nobody reads would then break a lock of equal hashes, so they are not
written. Six are more than any interval is narrow. What a later stage computes with is not rounded: weights, features,
log-probabilities, ratings. What is chosen by comparing figures is chosen before they are written.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ajuste.core.home import write_atomically

DIGITS = 6


def rounded(value: Any) -> Any:
    """The same tree of dicts, lists and tuples with every float at 6 significant digits; all else as it is.

    Integers, booleans, texts, None, nan and infinities stay. rounded(rounded(x)) == rounded(x).
    """
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value


def bound(noise: float, limit: float) -> float:
    """An upper bound of one digit for a figure that is nothing but rounding noise: 2.38e-06 -> 3e-06.

    The largest of many differences around 1e-6 has no digits that mean anything, and another processor has others. It
    is rounded up, so the bound is true, but not above the limit that the figure itself has kept. 0, nan and infinity
    stay.
    """
    if noise == 0 or not math.isfinite(noise):
        return noise
    power = math.floor(math.log10(noise))
    up = float(f"{math.ceil(float(f'{noise / 10**power:.9g}'))}e{power}")
    return min(up, limit) if noise <= limit else up


def write_json(
    path: Path, value: Any, indent: int = 1, sort_keys: bool = False, ensure_ascii: bool = True
) -> None:
    """A JSON file of rounded figures, always the same bytes for the same value."""
    text = json.dumps(rounded(value), indent=indent, sort_keys=sort_keys, ensure_ascii=ensure_ascii)
    write_atomically(path, text + "\n")


def write_lines(path: Path, rows: Iterable[dict]) -> None:
    """A JSON object a line, of rounded figures."""
    write_atomically(path, "".join(json.dumps(rounded(row), ensure_ascii=False) + "\n" for row in rows))
