"""Great Expectations' own expectations on frames of rows decide whether a row is good, and nothing else does.

What a row of one kind must be by itself stands beside this file: reviews.py, instructions.py, preferences.py.
Every expectation carries in `meta` the name of its check, which is also the reason that a row gets. A check of severity
`error` sends its rows to quarantine; one of severity `warn` only counts them. Relations between rows (duplicates,
conflicting labels) are found by ajuste/rows/duplicates.py, arrive here as columns, and are judged like all others.

Great Expectations repeats failing values in its results: they stay in memory.
"""

import logging
import os

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")  # read on import

import great_expectations as gx  # noqa: E402
import pandas as pd  # noqa: E402
from great_expectations import expectations as gxe  # noqa: E402
from great_expectations.data_context.types.base import ProgressBarsConfig  # noqa: E402

RELATION_COLUMNS = ["row", "duplicate_of", "conflicts_with", "near_duplicate_of", "split", "kept_split"]
MOJIBAKE = "Ã[\u0080-\u00bf\u0192\u201a-\u203a\u02c6\u20ac\u2122]|â€|Â[\u00a0-\u00bf]"  # UTF-8 read as Latin-1
WARNINGS = {"html_residue", "mojibake", "class_balance", "pii"}


class Judge:
    """An ephemeral context and one asset; `judge` runs expectations on a frame and names the rows that fail each."""

    def __init__(self) -> None:
        logging.getLogger("great_expectations").setLevel(logging.ERROR)
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        self._definition = (
            context.data_sources.add_pandas("rows")
            .add_dataframe_asset("rows")
            .add_batch_definition_whole_dataframe("all")
        )

    def judge(self, frame: pd.DataFrame, expectations: list[gxe.Expectation]) -> dict[str, list[int]]:
        """Check name -> values of column `row` where it fails; a check of the table as a whole fails with [-1]."""
        batch = self._definition.get_batch(batch_parameters={"dataframe": frame})
        form = {"result_format": "COMPLETE", "unexpected_index_column_names": ["row"], "include_unexpected_rows": False}
        # one by one: validated as a suite, an expectation that raises would look like one that fails
        failed = {}
        for expectation in expectations:
            result = batch.validate(expectation, result_format=form)
            if result.exception_info and result.exception_info.get("raised_exception"):
                raise RuntimeError(f"Great Expectations could not judge {expectation.meta['check']}")
            rows = result.result.get("unexpected_index_list") or []
            failed[expectation.meta["check"]] = [int(row["row"]) for row in rows] or ([] if result.success else [-1])
        return failed


def schema_checks(columns: list[str]) -> list[gxe.Expectation]:
    """On a frame with a file's columns: those that set.yaml maps must be among them."""
    return [gxe.ExpectTableColumnsToMatchSet(column_set=columns, exact_match=False, meta={"check": "schema"})]


def relation_checks() -> list[gxe.Expectation]:
    """What a row must be beside all others."""
    return [
        gxe.ExpectColumnValuesToBeNull(column="conflicts_with", meta={"check": "conflicting_label"}),
        gxe.ExpectColumnValuesToBeNull(column="duplicate_of", meta={"check": "exact_duplicate"}),
        gxe.ExpectColumnValuesToBeNull(column="near_duplicate_of", meta={"check": "near_duplicate"}),
        gxe.ExpectColumnPairValuesToBeEqual(
            column_A="split", column_B="kept_split", ignore_row_if="either_value_is_missing", meta={"check": "leakage"}
        ),
    ]


def quarantine_checks(max_share: float) -> list[gxe.Expectation]:
    """On a frame of one row: the share of all rows that is in quarantine."""
    return [gxe.ExpectColumnValuesToBeBetween(column="share", max_value=max_share, meta={"check": "quarantine_share"})]
