"""Stage `validate`: raw files of a set -> rows fit to train on, in three splits, and a quarantine for the rest.

    1. read     rows in batches, each with file:line; clean; Great Expectations judges each row by itself
    2. compare  exact duplicates, conflicting labels, near duplicates over all splits (tasks/_duplicates.py)
    3. judge    Great Expectations judges the relations; rows are written to their split, failing rows to quarantine

    train|validation|test.parquet   row_id, text, label (class id), source, location "data/<set>/<file>:<line>"
    quarantine.parquet              row_id, location, reasons (names of failed checks), detail, text
    labels.json                     class names in id order
    validation.json                 every check with its rule and count of failing rows, and counts. No text, no time

A check of severity `error` passes while its failing rows, which are all in quarantine, are at most
`max_quarantine_share` of the rows read. Above that share for all checks together the stage stops; what it found then
stands in <out>.failed/. Memory is a batch and some 60 bytes a row.

`instructions` is validated the same way, with checks of its own: tasks/_validate_instructions.py.

Run it: `python -m tasks.validate reviews|instructions`, or `dvc repro validate_reviews`.
"""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import Field

from tasks._checks import (
    RELATION_COLUMNS,
    ROW_COLUMNS,
    WARNINGS,
    Judge,
    relation_checks,
    row_checks,
    schema_checks,
)
from tasks._clean import clean, damage
from tasks._duplicates import Duplicates
from tasks._parquet import ParquetRows, read_batches
from tasks._read import RawRow, check_columns, columns_of, printable, read_rows
from tasks._sets import ClassificationSet, SourceFile, read_set
from tasks._split import SPLITS, in_sample, row_id, split_of, split_text, text_digest
from tasks._stage import Compute, Config, DataError, start
from tasks._validate_instructions import InstructionsConfig, validate_instructions
from tasks._validation import places_of, stop_message, validation_report, write_json

STAGED = pa.schema(
    [(name, pa.string()) for name in ("row_id", "text", "source", "location", "detail")]
    + [("label", pa.int32()), ("split", pa.int8()), ("reasons", pa.list_(pa.string()))]
)
KEPT = pa.schema(
    [("row_id", pa.string()), ("text", pa.string()), ("label", pa.int32())]
    + [("source", pa.string()), ("location", pa.string())]
)
QUARANTINE = pa.schema(
    [("row_id", pa.string()), ("location", pa.string()), ("reasons", pa.list_(pa.string())), ("detail", pa.string())]
    + [("text", pa.string())]
)


class ValidateConfig(Config):
    """Section `validate.<set>`."""

    set: str = Field(description="The folder under data/.")
    sample: float = Field(gt=0, le=1, description="Share of rows that are kept, chosen by row id.")
    max_chars: int = Field(gt=0, description="A longer text goes to quarantine.")
    near_duplicate_jaccard: float = Field(gt=0, le=1, description="Texts at least this similar count as one.")
    max_quarantine_share: float = Field(ge=0, le=1, description="Above this share of bad rows the stage stops.")
    min_class_share: float = Field(ge=0, le=1, description="A class below this share of a split is warned about.")
    batch_rows: int = Field(gt=0, description="Rows in memory at a time; changes no result.")


def validate(config: ValidateConfig, compute: Compute, data: Path, out: Path) -> dict:
    """Write the files named above into `out` and return validation.json's content.

    Raises DataError: a file that cannot be read, no row left, or too many rows in quarantine.
    """
    data_set = read_set(data, "classification")
    scratch, failed = out.with_name(f".{out.name}.scratch"), out.with_name(f"{out.name}.failed")
    for folder in (scratch, failed, out):
        shutil.rmtree(folder, ignore_errors=True)
        if folder != failed:
            folder.mkdir(parents=True)
    judge = Judge()
    counts: Counter = Counter({"read": 0})
    try:
        duplicates = Duplicates(scratch, config.near_duplicate_jaccard)
        _read_all(config, data, data_set, judge, duplicates, counts, scratch / "rows.parquet")
        relations = duplicates.judge()
        duplicates.close()
        _write_all(config, data_set, judge, relations, counts, scratch / "rows.parquet", out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    report = validation_report(config.set, data_set.labels, _rules(config), judge, counts)
    write_json(out / "labels.json", data_set.labels)
    write_json(out / "validation.json", report)
    if not report["rows"]["kept"] or not report["checks"][-1]["passed"]:  # the last one: quarantine_share
        out.rename(failed)
        raise DataError(stop_message(config.set, config.max_quarantine_share, counts, failed))
    return report


# --- 1. read --------------------------------------------------------------------------------------------------------


def _read_all(config: ValidateConfig, data: Path, data_set: ClassificationSet, judge: Judge, duplicates: Duplicates,
              counts: Counter, staged: Path) -> None:  # fmt: skip
    checks = row_checks(data_set.labels, config.max_chars)
    with ParquetRows(staged, STAGED) as sink:
        for file in data_set.files:
            _check_schema(data / file.path, file, judge)
            for raw in read_rows(data / file.path, file.format, file.columns, config.batch_rows):
                rows = [_row(config, data_set, file, row) for row in raw]
                rows = [row for row in rows if in_sample(row["row_id"], config.sample)]
                if rows:
                    _judge_batch(rows, data_set, judge, checks, duplicates, counts, sink)


def _check_schema(path: Path, file: SourceFile, judge: Judge) -> None:
    found = columns_of(path, file.format)
    frame = pd.DataFrame(columns=dict.fromkeys(found))
    if judge.judge(frame, schema_checks(file.columns.names()))["schema"] or len(frame.columns) < len(found):
        check_columns(path, found, file.columns)


def _row(config: ValidateConfig, data_set: ClassificationSet, file: SourceFile, raw: RawRow) -> dict:
    """A raw row with its names, cleaned; the row id is of what stands in the file."""
    source = Path(file.path).stem if raw.source is None else raw.source
    text, cleaned = clean(raw.text)
    label = raw.label.strip()
    place = f"{file.path}/{printable(raw.file)}:1" if raw.file else f"{file.path}:{raw.line}"
    return {
        "row_id": row_id(config.set, raw.text, raw.label, source),
        "text": printable(text),
        "damage": damage(text),
        "cleaned": cleaned,
        "label": printable((file.label_names or {}).get(label, label)),
        "source": printable(source),
        "location": f"data/{config.set}/{place}",
        "problem": raw.problem,
    }


def _judge_batch(rows: list[dict], data_set: ClassificationSet, judge: Judge, checks: list, duplicates: Duplicates,
                 counts: Counter, sink: ParquetRows) -> None:  # fmt: skip
    first = counts["read"]
    frame = pd.DataFrame({"row": range(first, first + len(rows))})
    for name in ROW_COLUMNS[1:]:
        frame[name] = pd.Series([row[name] for row in rows], dtype="int64" if name == "damage" else object)
    reasons: list[list[str]] = [[] for _ in rows]
    for check, failing in judge.judge(frame, checks).items():
        for row in failing:
            if check in WARNINGS:
                counts[check] += 1
            elif check == "unreadable_row" or rows[row - first]["problem"] is None:  # of such a row no more is known
                reasons[row - first].append(check)
    for row in rows:
        counts.update(f"cleaned:{kind}" for kind in row["cleaned"])
    normals = [split_text(row["text"]) for row in rows]
    digests = [text_digest(normal) for normal in normals]
    splits = np.array([split_of(digest) for digest in digests])
    known = {name: i for i, name in enumerate(data_set.labels)}
    labels = np.array([known.get(row["label"], -1) for row in rows])
    good = np.array([not found for found in reasons])
    ids = np.array([int(row["row_id"], 16) for row in rows], np.uint64)
    duplicates.add(normals, digests, labels, splits, ids, good)
    sink.write({
        **{name: [row[name] for row in rows] for name in ("row_id", "text", "source", "location")},
        "detail": [_detail(row, found) for row, found in zip(rows, reasons, strict=True)],
        "label": labels.astype(np.int32), "split": splits.astype(np.int8), "reasons": reasons,
    })  # fmt: skip
    counts["read"] += len(rows)


def _detail(row: dict, reasons: list[str]) -> str:
    parts = {
        "unreadable_row": row["problem"] or "",
        "encoding_damage": f"{row['damage']} damaged characters",
        "over_long_text": f"{len(row['text'])} characters",
        "unknown_label": f"label `{row['label'][:60]}`",
    }
    return "; ".join(parts[reason] for reason in reasons if reason in parts)


# --- 3. judge and write ---------------------------------------------------------------------------------------------


def _write_all(config: ValidateConfig, data_set: ClassificationSet, judge: Judge, relations: tuple[np.ndarray, ...],
               counts: Counter, staged: Path, out: Path) -> None:  # fmt: skip
    places = places_of(staged, relations)
    sinks = {split: ParquetRows(out / f"{split}.parquet", KEPT) for split in SPLITS}
    first = 0
    with sinks["train"], sinks["validation"], sinks["test"], ParquetRows(out / "quarantine.parquet", QUARANTINE) as bad:
        for batch in read_batches(staged, config.batch_rows):
            rows = {name: batch[name].to_pylist() for name in batch.schema.names}
            _relate(rows, first, [found[first : first + batch.num_rows] for found in relations], places, judge)
            good = np.array([not found for found in rows["reasons"]])
            for i, split in enumerate(SPLITS):
                kept = np.flatnonzero(good & (np.array(rows["split"]) == i))
                sinks[split].write({name: [rows[name][k] for k in kept] for name in KEPT.names})
                counts.update((split, "label", rows["label"][k]) for k in kept)
                counts.update((split, "source", rows["source"][k]) for k in kept)
            left = np.flatnonzero(~good)
            bad.write({name: [rows[name][k] for k in left] for name in QUARANTINE.names})
            for k in left:
                for reason in rows["reasons"][k]:
                    counts[f"reason:{reason}"] += 1
                    counts.setdefault(("first", reason), rows["location"][k])
            first += batch.num_rows
    counts["quarantined"] = bad.rows
    counts.update({f"kept:{split}": sinks[split].rows for split in SPLITS})


def _relate(rows: dict, first: int, relations: list[np.ndarray], places: dict, judge: Judge) -> None:
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
    for check, failing in judge.judge(frame, relation_checks()).items():
        for row in failing:
            rows["reasons"][row - first].append(check)
    for i, found in enumerate(zip(conflict_with, duplicate_of, near_of, strict=True)):
        for word, place in zip(("conflicts with", "repeats", "is nearly the same as"), found, strict=True):
            if place:
                rows["detail"][i] = f"{word} {place[0]}"


def _rules(config: ValidateConfig) -> dict[str, dict]:
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
    with start("validate", {"reviews": ValidateConfig, "instructions": InstructionsConfig}) as stage:
        work = validate_instructions if stage.variant == "instructions" else validate
        work(stage.config, stage.compute, Path("data") / stage.config.set, Path("artifacts/validated") / stage.variant)


if __name__ == "__main__":
    main()
