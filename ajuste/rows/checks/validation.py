"""What validating any kind of set shares: the scratch file, relations between rows, splits and quarantine, the report.

    with validating(config, out) as work:      fresh folders; `out` is empty, `work.staged` is a file to be made
        judge_all(work, sink, ...)             the kind's own reading: rows into work.staged and work.duplicates
        write_rows(work, ...)                  relations are judged; rows go to their split, failing ones to quarantine
    return finish(work, report)                validation.json; too many bad rows stop the stage

The rows of `staged` are all rows in order of reading, with at least the columns of QUARANTINE but `text`, and `split`
(index in SPLITS). validation.json holds every check with its rule, and counts by split. No text of a row, no time.

`counts` is what the stage has counted: read, quarantined, kept:<split>, reason:<check>, cleaned:<kind>, the warnings by
name, (split, "source", name) and what else the kind counts of a split, and ("first", check) -> file:line.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from great_expectations.expectations import Expectation
from pydantic import Field

from ajuste.core.errors import DataError
from ajuste.core.figures import write_json
from ajuste.core.launch.where import Spread
from ajuste.core.params import Config
from ajuste.rows.checks.expectations import (
    RELATION_COLUMNS,
    WARNINGS,
    Judge,
    quarantine_checks,
    relation_checks,
    schema_checks,
)
from ajuste.rows.duplicates import Duplicates
from ajuste.rows.parquet import GROUP_ROWS, ParquetRows, read_batches
from ajuste.rows.read.files import printable
from ajuste.rows.split import SPLITS

SHOWN_CHARS = 120  # of what is wrong with the first row, in the line that the run stops with
EXPLAINED = {"unreadable_row", "role_order", "unknown_label", "unknown_tag", "bad_ratings"}  # with their details
SOURCES_SHOWN = 50  # a column with a value of its own in every row must not fill the report
QUARANTINE = pa.schema(
    [("row_id", pa.string()), ("location", pa.string()), ("reasons", pa.list_(pa.string())), ("detail", pa.string())]
    + [("text", pa.string())]
)


class SetConfig(Config):
    """What section `validate.<set>` holds for every kind of set."""

    set: str = Field(description="The folder under data/.")
    sample: float = Field(gt=0, le=1, description="Share of rows that are kept, chosen by row id.")
    near_duplicate_jaccard: float = Field(gt=0, le=1, description="Rows at least this similar count as one.")
    max_quarantine_share: float = Field(ge=0, le=1, description="Above this share of bad rows the stage stops.")
    batch_rows: int = Field(gt=0, description="Rows in memory at a time; changes no result.")


@dataclass
class Work:
    """One validation under way."""

    config: SetConfig
    out: Path
    staged: Path
    duplicates: Duplicates
    judge: Judge = field(default_factory=Judge)
    counts: Counter = field(default_factory=lambda: Counter({"read": 0}))

    @property
    def failed(self) -> Path:
        """Where `out` goes if the stage stops."""
        return self.out.with_name(f"{self.out.name}.failed")

    def has_columns(self, found: list[str], needed: list[str]) -> bool:
        """Whether a file has the needed columns, and none twice."""
        frame = pd.DataFrame(columns=dict.fromkeys(found))
        return not self.judge.judge(frame, schema_checks(needed))["schema"] and len(frame.columns) == len(found)

    def reasons(self, columns: dict[str, pd.Series], checks: list[Expectation], problems: list) -> list[list[str]]:
        """The names of the checks that each row of a batch fails by itself; warnings are counted.

        columns: what the checks look at. problems: why a row could not be read, or None; of such a row no more is
        known, so `unreadable_row` is its only reason. Texts become storable here, whatever the kind: a lone surrogate
        that a file held must not stop the judge of all the other rows.
        """
        first = self.counts["read"]
        storable = {name: _storable(column) for name, column in columns.items()}
        frame = pd.DataFrame({"row": range(first, first + len(problems)), **storable})
        reasons: list[list[str]] = [[] for _ in problems]
        for check, failing in self.judge.judge(frame, checks).items():
            for row in failing:
                if check in WARNINGS:
                    self.counts[check] += 1
                elif check == "unreadable_row" or problems[row - first] is None:
                    reasons[row - first].append(check)
        return reasons


def _storable(column: pd.Series) -> pd.Series:
    if column.dtype != object:
        return column
    return pd.Series([printable(value) if isinstance(value, str) else value for value in column], dtype=object)


@contextmanager
def validating(config: SetConfig, out: Path) -> Iterator[Work]:
    """An empty `out`, without the folder of an earlier stop, and scratch space for as long as the body runs."""
    scratch = out.with_name(f".{out.name}.scratch")
    for folder in (scratch, out):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    try:
        work = Work(config, out, scratch / "rows.parquet", Duplicates(scratch, config.near_duplicate_jaccard))
        shutil.rmtree(work.failed, ignore_errors=True)
        yield work
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


_judge = cache(Judge)  # one for all batches of a process: to make it takes longer than to judge some
JudgeBatch = Callable[[Work, ParquetRows, list], None]  # rows of a batch -> work.counts, work.duplicates and the sink


def judge_all(work: Work, sink: ParquetRows, judge: JudgeBatch, batches: Iterable[list], spread: Spread) -> None:
    """Have every batch judged where `spread` says, and take what it came to into `work` and `sink`, in order.

    judge reads work.config and uses work.reasons; it sees no other batch, so work.counts begins at 0 for it.
    """
    for added, written, counts in spread(partial(_apart, work.config, judge), batches):
        for batch in added:
            work.duplicates.add(*batch)
        for columns in written:
            sink.write(columns)
        work.counts.update(counts)


class _Noted(list):
    """Stands for Duplicates and for a ParquetRows while a batch is judged apart: it keeps what either is given."""

    def add(self, *batch: object) -> None:
        self.append(batch)

    write = list.append


def _apart(config: SetConfig, judge: JudgeBatch, batch: list) -> tuple[list[tuple], list[dict], Counter]:
    """One batch: what goes to Duplicates.add and to the sink's write, and what was counted."""
    work, written = Work(config, Path(), Path(), _Noted(), _judge()), _Noted()
    judge(work, written, batch)
    return list(work.duplicates), list(written), work.counts


def write_rows(work: Work, kept: pa.Schema, tally: Callable[[dict, int], Iterable[tuple[str, object]]],
               text: Callable[[dict, int], str], relations: tuple[np.ndarray, ...] | None = None,
               checks: list[Expectation] | None = None) -> None:  # fmt: skip
    """Judge the relations between the staged rows, and write each row to its split or to quarantine.

    kept: schema of a split's file. Of row k of a batch (columns by name): tally gives what is counted of its split
    beside its number, as (what, value), and text how quarantine shows it. relations, checks: of this kind, where they
    are not what the duplicates say of themselves and relation_checks.
    """
    counts, out, config = work.counts, work.out, work.config
    relations = relations or work.duplicates.judge()
    checks = checks or relation_checks()
    work.duplicates.close()
    places = _places(work.staged, relations)
    sinks = {split: ParquetRows(out / f"{split}.parquet", kept) for split in SPLITS}
    first = 0
    with sinks["train"], sinks["validation"], sinks["test"], ParquetRows(out / "quarantine.parquet", QUARANTINE) as bad:
        for batch in read_batches(work.staged, config.batch_rows):
            rows = {name: batch[name].to_pylist() for name in batch.schema.names}
            here = [found[first : first + batch.num_rows] for found in relations]
            _relate(rows, first, here, places, work.judge, checks)
            good = np.array([not found for found in rows["reasons"]])
            for i, split in enumerate(SPLITS):
                chosen = np.flatnonzero(good & (np.array(rows["split"]) == i))
                sinks[split].write({name: [rows[name][k] for k in chosen] for name in kept.names})
                counts.update((split, *counted) for k in chosen for counted in tally(rows, k))
            left = np.flatnonzero(~good)
            bad.write({
                **{name: [rows[name][k] for k in left] for name in QUARANTINE.names[:-1]},
                "text": [text(rows, k) for k in left],
            })  # fmt: skip
            for k in left:
                for reason in rows["reasons"][k]:
                    counts[f"reason:{reason}"] += 1
                    detail = rows["detail"][k]
                    shown = f": {detail[:SHOWN_CHARS]}" if detail and reason in EXPLAINED else ""
                    counts.setdefault(("first", reason), f"{rows['location'][k]}{shown}")
            first += batch.num_rows
    counts["quarantined"] = bad.rows
    counts.update({f"kept:{split}": sinks[split].rows for split in SPLITS})


def _relate(rows: dict, first: int, relations: list[np.ndarray], places: dict, judge: Judge,
            checks: list[Expectation]) -> None:  # fmt: skip
    """Add the reasons that come from other rows, with the place of the other row."""
    duplicate_of, conflict_with, near_of = ([places.get(int(row)) for row in found] for found in relations)
    columns = {
        "duplicate_of": [place and place[0] for place in duplicate_of],
        "conflicts_with": [place and place[0] for place in conflict_with],
        "near_duplicate_of": [place and place[0] for place in near_of],
        "split": [SPLITS[split] for split in rows["split"]],
        "kept_split": [place and SPLITS[place[1]] for place in near_of],
    }
    frame = pd.DataFrame({"row": range(first, first + len(near_of))})
    for name in RELATION_COLUMNS[1:]:
        frame[name] = pd.Series(columns[name], dtype=object)
    for check, failing in judge.judge(frame, checks).items():
        for row in failing:
            rows["reasons"][row - first].append(check)
    for i, found in enumerate(zip(conflict_with, duplicate_of, near_of, strict=True)):
        for word, place in zip(("conflicts with", "repeats", "is nearly the same as"), found, strict=True):
            if place:
                rows["detail"][i] = f"{word} {place[0]}"


def finish(work: Work, report: dict) -> dict:
    """Write validation.json and return it. Raises DataError, and moves `out` to <out>.failed, if no row is left or too
    many are in quarantine."""
    write_json(work.out / "validation.json", report, indent=2, ensure_ascii=False)
    if not report["rows"]["kept"] or not report["checks"][-1]["passed"]:  # the last one: quarantine_share
        work.out.rename(work.failed)
        raise DataError(_stop_message(work))
    return report


def report_of(work: Work, rules: dict[str, dict], cleaned: tuple[str, ...], more: dict[str, int] | None = None) -> dict:
    """validation.json without its splits. `more`: failures that `counts` does not hold, by check."""
    counts, read = work.counts, work.counts["read"]
    max_share = rules["quarantine_share"]["max_share_of_rows"]
    share = pd.DataFrame({"row": [0], "share": [counts["quarantined"] / max(read, 1)]})
    too_many = work.judge.judge(share, quarantine_checks(max_share))["quarantine_share"]
    failing = {check: counts[check if check in WARNINGS else f"reason:{check}"] for check in rules}
    failing |= {"quarantine_share": counts["quarantined"]} | (more or {})
    passed = {check: n <= (0 if check in WARNINGS else max_share * read) for check, n in failing.items()}
    passed["quarantine_share"] = not too_many
    return {
        "set": work.config.set,
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


def _stop_message(work: Work) -> str:
    """Why the stage stops: each reason with its count and its first place."""
    counts = work.counts
    found = [(n, key.removeprefix("reason:")) for key, n in counts.items() if str(key).startswith("reason:")]
    read = max(counts["read"], 1)
    listed = "; ".join(f"{check} {n}, {n / read:.0%} (first: {counts[('first', check)]})"
                       for n, check in sorted(found, reverse=True))  # fmt: skip
    return (
        f"data/{work.config.set}: {counts['quarantined']} of {counts['read']} rows are bad, and max_quarantine_share "
        f"is {work.config.max_quarantine_share:g}: {listed or 'no row is left, raise `sample`'}. Every row: "
        f"{work.failed}/quarantine.parquet"
    )


def _places(staged: Path, relations: tuple[np.ndarray, ...]) -> dict[int, tuple[str, int]]:
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
