"""The checks on rows whose labels are places in a text: tagged words, and questions with their answers.

What is read is never cleaned, for a tag belongs to a word and an answer to characters as they stand.
"""

import pandas as pd

from ajuste.rows.checks.expectations import gxe

COLUMNS = ["row", "problem", "damage", "size", "unknown"]


def row_checks(most: int) -> list[gxe.Expectation]:
    """On a frame with COLUMNS. size: words or characters. unknown: a tag that the set does not name, or None."""
    return [
        gxe.ExpectColumnValuesToBeNull(column="problem", meta={"check": "unreadable_row"}),
        gxe.ExpectColumnValuesToBeBetween(column="damage", max_value=0, meta={"check": "encoding_damage"}),
        gxe.ExpectColumnValuesToBeBetween(column="size", max_value=most, meta={"check": "over_long"}),
        gxe.ExpectColumnValuesToBeNull(column="unknown", meta={"check": "unknown_tag"}),
    ]


def columns_of(rows: list[dict]) -> dict[str, pd.Series]:
    """The columns of rows that were measured, without `row`."""
    kinds = {"damage": "int64", "size": "int64"}
    return {name: pd.Series([row[name] for row in rows], dtype=kinds.get(name, object)) for name in COLUMNS[1:]}
