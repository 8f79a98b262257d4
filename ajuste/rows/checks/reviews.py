"""What a labelled text must be, by itself and beside the others of its class, and the report on a set of them."""

from collections import Counter

import pandas as pd

from ajuste.rows.checks.expectations import MOJIBAKE, Judge, gxe
from ajuste.rows.checks.validation import Work, most_common, report_of
from ajuste.rows.clean import KINDS
from ajuste.rows.split import SPLITS

COLUMNS = ["row", "problem", "damage", "visible", "text", "label"]
HTML_RESIDUE = r"<[A-Za-z/!][^<>]{0,200}>|&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});"


def row_checks(labels: list[str], max_chars: int) -> list[gxe.Expectation]:
    """What a row must be by itself."""
    return [
        gxe.ExpectColumnValuesToBeNull(column="problem", meta={"check": "unreadable_row"}),
        gxe.ExpectColumnValuesToBeBetween(column="damage", max_value=0, meta={"check": "encoding_damage"}),
        gxe.ExpectColumnValuesToBeBetween(column="visible", min_value=1, meta={"check": "empty_text"}),
        gxe.ExpectColumnValueLengthsToBeBetween(column="text", max_value=max_chars, meta={"check": "over_long_text"}),
        gxe.ExpectColumnValuesToBeInSet(column="label", value_set=labels, meta={"check": "unknown_label"}),
        gxe.ExpectColumnValuesToNotMatchRegex(column="text", regex=HTML_RESIDUE, meta={"check": "html_residue"}),
        gxe.ExpectColumnValuesToNotMatchRegex(column="text", regex=MOJIBAKE, meta={"check": "mojibake"}),
    ]


def balance_checks(min_class_share: float) -> list[gxe.Expectation]:
    """On a frame of (row, split, label, share of the split's rows)."""
    return [
        gxe.ExpectColumnValuesToBeBetween(column="share", min_value=min_class_share, meta={"check": "class_balance"})
    ]


def validation_report(work: Work, labels: list[str], rules: dict[str, dict]) -> dict:
    """validation.json of a classification set. `rules`: check -> its numbers, in the order of the report."""
    splits = {split: _split(split, labels, work.counts) for split in SPLITS}
    small = {"class_balance": _small_classes(splits, rules["class_balance"]["min_share"], work.judge)}
    return report_of(work, rules, KINDS, small) | {"splits": splits}


def _split(split: str, labels: list[str], counts: Counter) -> dict:
    return {
        "rows": counts[f"kept:{split}"],
        "labels": {label: counts[(split, "label", i)] for i, label in enumerate(labels)},
        "sources": most_common(counts, split, "source"),
    }


def _small_classes(splits: dict, min_share: float, judge: Judge) -> int:
    shares = [n / max(split["rows"], 1) for split in splits.values() for n in split["labels"].values()]
    frame = pd.DataFrame({"row": range(len(shares)), "share": shares})
    return len(judge.judge(frame, balance_checks(min_share))["class_balance"])
