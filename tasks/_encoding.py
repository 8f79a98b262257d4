"""What encoding classification rows and encoding conversations share. Private to the tasks."""

from collections.abc import Iterable

import numpy as np
from pydantic import Field

from tasks._params import Config

PERCENTILES = (50, 90, 95, 99, 100)


class RowLimits(Config):
    """How many rows of each split are taken; null: all."""

    train: int | None = Field(ge=1)
    validation: int | None = Field(ge=1)
    test: int | None = Field(ge=1)


def last_of_lowest(row_ids: np.ndarray, rows: int) -> str:
    """The highest among the `rows` lowest of the ids (uint64), as row ids are written; rows is 1 to all of them."""
    return f"{int(np.partition(row_ids, rows - 1)[rows - 1]):016x}"


def as_numbers(row_ids: Iterable[str]) -> np.ndarray:
    """Row ids, 16 hex digits, as uint64: eight bytes each."""
    return np.array([int(row_id, 16) for row_id in row_ids], np.uint64)


def percentiles(lengths: np.ndarray, counts: np.ndarray) -> dict[str, int]:
    """The shortest length that a share of the rows does not exceed; `lengths` ascending, `counts` rows of each."""
    total, reached = counts.sum(), counts.cumsum()
    return {str(p): int(lengths[np.searchsorted(reached, p / 100 * total)]) for p in PERCENTILES}
