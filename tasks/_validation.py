"""What both kinds of set share at the end of validation: the report, the message of a stop, the places of rows.

validation.json holds every check with its rule, and counts by split, class and source. No text of a row, no time.

`counts` is what the stage has counted: read, quarantined, kept:<split>, reason:<check>, cleaned:<kind>, the warnings by
name, (split, "label", id), (split, "source", name) and ("first", check) -> file:line. Private to the tasks.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from tasks._checks import WARNINGS, Judge, balance_checks, quarantine_checks
from tasks._clean import KINDS
from tasks._parquet import GROUP_ROWS, read_batches
from tasks._split import SPLITS

SOURCES_SHOWN = 50  # a column with a value of its own in every row must not fill the report


def validation_report(name: str, labels: list[str], rules: dict[str, dict], judge: Judge, counts: Counter) -> dict:
    """The content of validation.json. `rules`: check -> its numbers, in the order of the report."""
    splits = {split: _split(split, labels, counts) for split in SPLITS}
    small = {"class_balance": _small_classes(splits, rules["class_balance"]["min_share"], judge)}
    return report_of(name, rules, judge, counts, small, KINDS) | {"splits": splits}


def report_of(name: str, rules: dict[str, dict], judge: Judge, counts: Counter, more: dict[str, int],
              cleaned: tuple[str, ...]) -> dict:  # fmt: skip
    """validation.json without its splits. `more`: failures that `counts` does not hold, by check."""
    read = counts["read"]
    max_share = rules["quarantine_share"]["max_share_of_rows"]
    share = pd.DataFrame({"row": [0], "share": [counts["quarantined"] / max(read, 1)]})
    too_many = judge.judge(share, quarantine_checks(max_share))["quarantine_share"]
    failing = {check: counts[check if check in WARNINGS else f"reason:{check}"] for check in rules}
    failing |= {"quarantine_share": counts["quarantined"]} | more
    passed = {check: n <= (0 if check in WARNINGS else max_share * read) for check, n in failing.items()}
    passed["quarantine_share"] = not too_many
    return {
        "set": name,
        "checks": [
            {
                "name": check,
                "severity": "warn" if check in WARNINGS else "error",
                "rows_failed": failing[check],
                "passed": passed[check],
                "rule": rule,
            }
            for check, rule in rules.items()
        ],
        "rows": {
            "read": read,
            "kept": sum(counts[f"kept:{split}"] for split in SPLITS),
            "quarantined": counts["quarantined"],
            "exact_duplicates": counts["reason:exact_duplicate"],
            "near_duplicates": counts["reason:near_duplicate"],
        },
        "cleaned": {kind: counts[f"cleaned:{kind}"] for kind in cleaned},
    }


def stop_message(name: str, max_share: float, counts: Counter, failed: Path) -> str:
    """Why the stage stops: each reason with its count and its first place."""
    found = [(n, key.removeprefix("reason:")) for key, n in counts.items() if str(key).startswith("reason:")]
    listed = "; ".join(f"{check} {n} (first: {counts[('first', check)]})" for n, check in sorted(found, reverse=True))
    return (
        f"data/{name}: {counts['quarantined']} of {counts['read']} rows are bad, and max_quarantine_share is "
        f"{max_share:g}: {listed or 'no row is left, raise `sample`'}. Every row: {failed}/quarantine.parquet"
    )


def places_of(staged: Path, relations: tuple[np.ndarray, ...]) -> dict[int, tuple[str, int]]:
    """Location and split of the rows that others are duplicates of; `staged` holds all rows in order."""
    wanted = np.unique(np.concatenate([found[found >= 0] for found in relations]))
    places, first = {}, 0
    for batch in read_batches(staged, GROUP_ROWS, ["location", "split"]):
        for row in wanted[np.searchsorted(wanted, first) : np.searchsorted(wanted, first + batch.num_rows)]:
            places[int(row)] = (batch["location"][int(row) - first].as_py(), batch["split"][int(row) - first].as_py())
        first += batch.num_rows
    return places


def most_common(counts: Counter, split: str, what: str) -> dict[str, int]:
    """The rows of a split by source or category, the most frequent first, and the rest together."""
    found = [(n, key[2]) for key, n in counts.items() if isinstance(key, tuple) and key[:2] == (split, what)]
    found.sort(key=lambda item: (-item[0], item[1]))
    shown = {name: n for n, name in found[:SOURCES_SHOWN]}
    if len(found) > SOURCES_SHOWN:
        shown["(others)"] = sum(n for n, _ in found[SOURCES_SHOWN:])
    return shown


def write_json(path: Path, value: object) -> None:
    """JSON that people can read, always the same bytes for the same value."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


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
