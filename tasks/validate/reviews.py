"""Stage `validate_reviews`: raw files of a set -> rows fit to train on, in three splits, and a quarantine for the rest.

    1. read     rows in batches, each with file:line; clean; Great Expectations judges each row by itself
    2. compare  exact duplicates, conflicting labels, near duplicates over all splits (ajuste/rows/duplicates.py)
    3. judge    Great Expectations judges the relations; rows are written to their split, failing rows to quarantine
                (ajuste/rows/checks/validation.py)

    train|validation|test.parquet   row_id, text, label (class id), source, location "data/<set>/<file>:<line>"
    quarantine.parquet              row_id, location, reasons (names of failed checks), detail, text
    labels.json                     class names in id order
    validation.json                 every check with its rule and count of failing rows, and counts. No text, no time

A check of severity `error` passes while its failing rows, which are all in quarantine, are at most
`max_quarantine_share` of the rows read. Above that share for all checks together the stage stops; what it found then
stands in <out>.failed/. Memory is a batch and some 60 bytes a row.

Run it: `python -m tasks.validate.reviews`, or `dvc repro validate_reviews`.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import Field

from ajuste.core.figures import write_json
from ajuste.core.launch.where import Spread, spread
from ajuste.core.params import Compute
from ajuste.core.stage import start
from ajuste.rows.checks.reviews import COLUMNS, row_checks, validation_report
from ajuste.rows.checks.validation import SetConfig, Work, finish, judge_all, validating, write_rows
from ajuste.rows.clean import clean, damage, lone, visible
from ajuste.rows.parquet import ParquetRows
from ajuste.rows.read.files import columns_of, printable
from ajuste.rows.read.texts import RawRow, check_columns, read_rows
from ajuste.rows.read.values import class_of
from ajuste.rows.sets.classification import ClassificationSet, SourceFile, read_set
from ajuste.rows.split import in_sample, row_id, split_of, split_text, text_digest

STAGED = pa.schema(
    [(name, pa.string()) for name in ("row_id", "text", "source", "location", "detail")]
    + [("label", pa.int32()), ("split", pa.int8()), ("reasons", pa.list_(pa.string()))]
)
KEPT = pa.schema(
    [("row_id", pa.string()), ("text", pa.string()), ("label", pa.int32())]
    + [("source", pa.string()), ("location", pa.string())]
)


class ReviewsConfig(SetConfig):
    """Section `validate.<set>` of a classification set."""

    max_chars: int = Field(gt=0, description="A longer text goes to quarantine.")
    min_class_share: float = Field(ge=0, le=1, description="A class below this share of a split is warned about.")


def validate_reviews(config: ReviewsConfig, compute: Compute, data: Path, out: Path, spread: Spread = map) -> dict:
    """Write the files named above into `out` and return validation.json's content.

    spread: where batches are judged (core/launch/where.py). Raises DataError: a file that cannot be read, no row left,
    or too many rows in quarantine.
    """
    data_set = read_set(data)
    with validating(config, out) as work:
        _read_all(work, data, data_set, spread)
        write_rows(work, KEPT, lambda rows, k: [(what, rows[what][k]) for what in ("label", "source")],
                   lambda rows, k: rows["text"][k])  # fmt: skip
    write_json(out / "labels.json", data_set.labels, indent=2, ensure_ascii=False)
    return finish(work, validation_report(work, data_set.labels, _rules(config)))


def _read_all(work: Work, data: Path, data_set: ClassificationSet, spread: Spread) -> None:
    config = work.config
    checks = row_checks(data_set.labels, config.max_chars)
    with ParquetRows(work.staged, STAGED) as sink:
        for file in data_set.files:
            _check_schema(work, data / file.path, file)
            raw = read_rows(data / file.path, file.format, file.columns, config.batch_rows)
            judge_all(work, sink, partial(_judge_raw, data_set=data_set, file=file, checks=checks), raw, spread)


def _judge_raw(work: Work, sink: ParquetRows, raw: list[RawRow], data_set: ClassificationSet, file: SourceFile,
               checks: list) -> None:  # fmt: skip
    rows = [_row(work.config, data_set, file, row) for row in raw]
    rows = [row for row in rows if in_sample(row["row_id"], work.config.sample)]
    if rows:
        _judge_batch(work, rows, data_set, checks, sink)


def _check_schema(work: Work, path: Path, file: SourceFile) -> None:
    found = columns_of(path, file.format)
    if not work.has_columns(found, file.columns.names()):
        check_columns(path, found, file.columns)


def _row(config: ReviewsConfig, data_set: ClassificationSet, file: SourceFile, raw: RawRow) -> dict:
    """A raw row with its names, cleaned; the row id is of what stands in the file."""
    source = Path(file.path).stem if raw.source is None else raw.source
    text, cleaned = clean(raw.text)
    label = class_of(raw.label.strip(), data_set.labels, file.label_names)
    place = f"{file.path}/{printable(raw.file)}:1" if raw.file else f"{file.path}:{raw.line}"
    return {
        "row_id": row_id(config.set, raw.text, raw.label, source),
        "text": printable(text),
        "visible": visible(text),
        "damage": damage(text) + lone(raw.label) + lone(source),
        "cleaned": cleaned,
        "label": printable(label),
        "source": printable(source),
        "location": f"data/{config.set}/{place}",
        "problem": raw.problem,
    }


def _judge_batch(work: Work, rows: list[dict], data_set: ClassificationSet, checks: list, sink: ParquetRows) -> None:
    columns = {
        name: pd.Series([row[name] for row in rows], dtype="int64" if name in ("damage", "visible") else object)
        for name in COLUMNS[1:]
    }
    reasons = work.reasons(columns, checks, [row["problem"] for row in rows])
    for row in rows:
        work.counts.update(f"cleaned:{kind}" for kind in row["cleaned"])
    normals = [split_text(row["text"]) for row in rows]
    digests = [text_digest(normal) for normal in normals]
    splits = np.array([split_of(digest) for digest in digests])
    known = {name: i for i, name in enumerate(data_set.labels)}
    labels = np.array([known.get(row["label"], -1) for row in rows])
    good = np.array([not found for found in reasons])
    ids = np.array([int(row["row_id"], 16) for row in rows], np.uint64)
    work.duplicates.add(normals, digests, labels, splits, ids, good)
    sink.write({
        **{name: [row[name] for row in rows] for name in ("row_id", "text", "source", "location")},
        "detail": [_detail(row, found) for row, found in zip(rows, reasons, strict=True)],
        "label": labels.astype(np.int32), "split": splits.astype(np.int8), "reasons": reasons,
    })  # fmt: skip
    work.counts["read"] += len(rows)


def _detail(row: dict, reasons: list[str]) -> str:
    parts = {
        "unreadable_row": printable(row["problem"] or ""),
        "encoding_damage": f"{row['damage']} damaged characters",
        "over_long_text": f"{len(row['text'])} characters",
        "unknown_label": f"label `{row['label'][:60]}`",
    }
    return "; ".join(parts[reason] for reason in reasons if reason in parts)


def _rules(config: ReviewsConfig) -> dict[str, dict]:
    """Every check in the order of the report, with its numbers."""
    limit = {"max_share_of_rows": config.max_quarantine_share}
    return {
        "schema": {}, "unreadable_row": limit, "encoding_damage": limit, "empty_text": limit,
        "over_long_text": {"max_chars": config.max_chars, **limit}, "unknown_label": limit, "conflicting_label": limit,
        "exact_duplicate": limit, "near_duplicate": {"jaccard": config.near_duplicate_jaccard, **limit},
        "leakage": limit, "html_residue": {}, "mojibake": {}, "class_balance": {"min_share": config.min_class_share},
        "quarantine_share": limit,
    }  # fmt: skip


def main() -> None:
    with start("validate_reviews", ReviewsConfig) as stage:
        data = Path("data") / stage.config.set
        validate_reviews(stage.config, stage.compute, data, Path("artifacts/validated/reviews"), spread)


if __name__ == "__main__":
    main()
