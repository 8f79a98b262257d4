"""How rows are validated whose labels are places in a text: tagged words, and questions with their answers.

    1. read     rows in batches with file:line; each is judged by itself
    2. compare  the same text with the same labels is a duplicate, with others a conflict, so that none stays; what is
                nearly the same stands in one split alone (ajuste/rows/duplicates.py)
    3. judge    rows are written to their split, failing rows to quarantine with their reasons

What is read is never cleaned, for a tag belongs to a word and an answer to characters as they stand. What a kind has of
its own (tasks/validate/words.py, questions.py) is a Kind.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from ajuste.rows.checks.expectations import gxe
from ajuste.rows.checks.validation import Work
from ajuste.rows.parquet import ParquetRows
from ajuste.rows.read.files import printable
from ajuste.rows.read.records import check_needed
from ajuste.rows.split import in_sample, split_of, text_digest

COLUMNS = ["row", "problem", "damage", "size", "unknown"]
STAGED = [("detail", pa.string()), ("raw", pa.string()), ("split", pa.int8()), ("reasons", pa.list_(pa.string()))]


@dataclass(frozen=True)
class Kind:
    """What tagged words and questions do not share. A file is one of the set's `files`.

    row: of what was read a dictionary with the columns of `kept`, and raw, problem, damage, size, unknown (COLUMNS),
    about (decides the split), same (what makes a duplicate) and said (what must not differ between two of them).
    """

    name: str
    kept: pa.Schema  # of a split's file
    shown: tuple[str, ...]  # columns that quarantine shows
    limit: str  # key of the section: rows of a larger size are over_long
    unit: str  # of that size
    columns_in: Callable[[Path, object], list[str]]
    needed: Callable[[object], list[str]]
    read: Callable[[Path, object, int], Iterator[list]]
    row: Callable[[object, object], dict]  # (file, what was read)
    unknown: str | None = None  # check of what the set does not name


def read_all(work: Work, kind: Kind, data: Path, files: list) -> None:
    """All rows of the files of a set into work.staged and work.duplicates. Raises DataError for a file as a whole."""
    config = work.config
    with ParquetRows(work.staged, pa.schema([*kind.kept, *STAGED])) as sink:
        for file in files:
            path = data / file.path
            found, needed = kind.columns_in(path, file), kind.needed(file)
            if not work.has_columns(found, needed):
                check_needed(path, found, needed, kind.name)
            for batch in kind.read(path, file, config.batch_rows):
                rows = [kind.row(file, row) for row in batch]
                rows = [row for row in rows if in_sample(row["row_id"], config.sample)]
                if rows:
                    _judge_batch(work, kind, rows, sink)


def _judge_batch(work: Work, kind: Kind, rows: list[dict], sink: ParquetRows) -> None:
    types = {"damage": "int64", "size": "int64"}
    columns = {name: pd.Series([row[name] for row in rows], dtype=types.get(name, object)) for name in COLUMNS[1:]}
    checks = row_checks(getattr(work.config, kind.limit))
    reasons = work.reasons(columns, checks, [row["problem"] for row in rows])
    splits = np.array([split_of(text_digest(row["about"])) for row in rows])
    said = np.array([int(text_digest(json.dumps(row["said"])).hex()[:7], 16) for row in rows])
    ids = np.array([int(row["row_id"], 16) for row in rows], np.uint64)
    good = np.array([not found for found in reasons])
    same = [text_digest(row["same"]) for row in rows]
    work.duplicates.add([row["about"] for row in rows], same, said, splits, ids, good)
    sink.write({
        **{name: [row[name] for row in rows] for name in (*kind.kept.names, "raw")},
        "detail": [_detail(row, found, kind.unit) for row, found in zip(rows, reasons, strict=True)],
        "split": splits.astype(np.int8), "reasons": reasons,
    })  # fmt: skip
    work.counts["read"] += len(rows)


def row_checks(most: int) -> list[gxe.Expectation]:
    """On a frame with COLUMNS. size: words or characters. unknown: a tag that the set does not name, or None."""
    return [
        gxe.ExpectColumnValuesToBeNull(column="problem", meta={"check": "unreadable_row"}),
        gxe.ExpectColumnValuesToBeBetween(column="damage", max_value=0, meta={"check": "encoding_damage"}),
        gxe.ExpectColumnValuesToBeBetween(column="size", max_value=most, meta={"check": "over_long"}),
        gxe.ExpectColumnValuesToBeNull(column="unknown", meta={"check": "unknown_tag"}),
    ]


def _detail(row: dict, reasons: list[str], unit: str) -> str:
    parts = {
        "unreadable_row": row["problem"] or "",
        "encoding_damage": f"{row['damage']} damaged characters",
        "over_long": f"{row['size']} {unit}",
        "unknown_tag": f"tag `{(row['unknown'] or '')[:60]}`",
    }
    return printable("; ".join(parts[reason] for reason in reasons if reason in parts))


def quarantined(kind: Kind) -> Callable[[dict, int], str]:
    """How quarantine shows row k of a batch: as JSON, or as it stands in the file if it could not be read."""

    def text(rows: dict, k: int) -> str:
        raw = rows["raw"][k]
        return raw if raw is not None else json.dumps({name: rows[name][k] for name in kind.shown}, ensure_ascii=False)

    return text


def rules(config, kind: Kind) -> dict[str, dict]:
    """Every check in the order of the report, with its numbers."""
    limit = {"max_share_of_rows": config.max_quarantine_share}
    return {
        "schema": {}, "unreadable_row": limit, "encoding_damage": limit,
        "over_long": {kind.limit: getattr(config, kind.limit), **limit},
        **({kind.unknown: limit} if kind.unknown else {}), "conflicting_label": limit, "exact_duplicate": limit,
        "near_duplicate": {"jaccard": config.near_duplicate_jaccard, **limit}, "leakage": limit,
        "quarantine_share": limit,
    }  # fmt: skip
