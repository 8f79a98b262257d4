"""Tagged words -> rows fit to train on, in three splits, and a quarantine for the rest.

    1. read     sentences in batches with file:line; each is judged by itself (ajuste/rows/checks/spans.py)
    2. compare  the same words with the same tags are a duplicate, with other tags a conflict, so that none stays;
                nearly the same sentence stands in one split alone (ajuste/rows/duplicates.py)
    3. judge    rows are written to their split, failing rows to quarantine with their reasons

    train|validation|test.parquet   row_id, words, tags, source, location
    quarantine.parquet              row_id, location, reasons, detail, text (the row as JSON)
    labels.json                     tags in id order
    validation.json                 every check with its rule and count of failing rows, words by tag

The split is decided by the words, joined by blanks. Used by the study `ner`: `ajuste study ner`.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import Field

from ajuste.core.figures import write_json
from ajuste.core.params import Compute
from ajuste.rows.checks.spans import columns_of, row_checks
from ajuste.rows.checks.validation import SetConfig, Work, finish, report_of, validating, write_rows
from ajuste.rows.clean import damage, lone
from ajuste.rows.parquet import ParquetRows
from ajuste.rows.read.files import printable
from ajuste.rows.read.records import check_needed
from ajuste.rows.read.words import Sentence, columns_in, needed, read_words
from ajuste.rows.sets.words import WordFile, WordSet, read_set
from ajuste.rows.split import SPLITS, in_sample, row_id, split_of, split_text, text_digest

TEXTS = pa.list_(pa.string())
KEPT = pa.schema([("row_id", pa.string()), ("words", TEXTS), ("tags", TEXTS)]
                 + [("source", pa.string()), ("location", pa.string())])  # fmt: skip
STAGED = pa.schema([*KEPT, ("detail", pa.string()), ("raw", pa.string()), ("split", pa.int8()), ("reasons", TEXTS)])


class WordsConfig(SetConfig):
    """Section `validate` of the study. `set` is the folder of the set."""

    max_words: int = Field(gt=0, description="A longer sentence goes to quarantine.")


def validate_words(config: WordsConfig, compute: Compute, data: Path, out: Path) -> dict:
    """Write the files named above into `out` and return validation.json's content.

    data: the set's folder. Raises DataError: a file that cannot be read, no row left, or too many in quarantine.
    """
    data_set = read_set(data)
    with validating(config, out) as work:
        _read_all(work, data, data_set)
        write_rows(work, KEPT, lambda rows, k: [("tag", tag) for tag in rows["tags"][k]], _text)
    write_json(out / "labels.json", data_set.labels, indent=2, ensure_ascii=False)
    report = report_of(work, _rules(config), ())
    report["splits"] = {split: _split(split, data_set.labels, work.counts) for split in SPLITS}
    return finish(work, report)


def _read_all(work: Work, data: Path, data_set: WordSet) -> None:
    config = work.config
    with ParquetRows(work.staged, STAGED) as sink:
        for file in data_set.files:
            path = data / file.path
            found = columns_in(path, file)
            if not work.has_columns(found, needed(file)):
                check_needed(path, found, needed(file), "words")
            for batch in read_words(path, file, config.batch_rows):
                rows = [_row(config, data_set, data, file, row) for row in batch]
                rows = [row for row in rows if in_sample(row["row_id"], config.sample)]
                if rows:
                    _judge_batch(work, rows, sink)


def _row(config: WordsConfig, data_set: WordSet, data: Path, file: WordFile, row: Sentence) -> dict:
    """A sentence with its names and measures; the row id is of what stands in the file."""
    source = Path(file.path).stem
    identity = row.raw if row.problem else json.dumps([row.words, row.tags])
    return {
        "row_id": row_id(config.set, identity, "", source),
        "words": [printable(word) for word in row.words], "tags": [printable(tag) for tag in row.tags],
        "source": source, "location": f"{data}/{file.path}:{row.line}",
        "raw": printable(row.raw) if row.problem else None, "problem": row.problem,
        "damage": sum(damage(word) for word in row.words) + sum(map(lone, row.tags)), "size": len(row.words),
        "unknown": next((printable(tag) for tag in row.tags if tag not in data_set.labels), None),
        "normal": split_text(row.raw if row.problem else " ".join(row.words)),
    }  # fmt: skip


def _judge_batch(work: Work, rows: list[dict], sink: ParquetRows) -> None:
    reasons = work.reasons(columns_of(rows), row_checks(work.config.max_words), [row["problem"] for row in rows])
    digests = [text_digest(row["normal"]) for row in rows]
    splits = np.array([split_of(digest) for digest in digests])
    said = np.array([int(text_digest(json.dumps(row["tags"])).hex()[:7], 16) for row in rows])
    ids = np.array([int(row["row_id"], 16) for row in rows], np.uint64)
    good = np.array([not found for found in reasons])
    work.duplicates.add([row["normal"] for row in rows], digests, said, splits, ids, good)
    sink.write({
        **{name: [row[name] for row in rows] for name in (*KEPT.names, "raw")},
        "detail": [_detail(row, found) for row, found in zip(rows, reasons, strict=True)],
        "split": splits.astype(np.int8), "reasons": reasons,
    })  # fmt: skip
    work.counts["read"] += len(rows)


def _detail(row: dict, reasons: list[str]) -> str:
    parts = {
        "unreadable_row": row["problem"] or "",
        "encoding_damage": f"{row['damage']} damaged characters",
        "over_long": f"{row['size']} words",
        "unknown_tag": f"tag `{(row['unknown'] or '')[:60]}`",
    }
    return printable("; ".join(parts[reason] for reason in reasons if reason in parts))


def _text(rows: dict, k: int) -> str:
    """The row as JSON, or as it stands in the file if it could not be read."""
    if rows["raw"][k] is not None:
        return rows["raw"][k]
    return json.dumps({name: rows[name][k] for name in ("words", "tags")}, ensure_ascii=False)


def _rules(config: WordsConfig) -> dict[str, dict]:
    """Every check in the order of the report, with its numbers."""
    limit = {"max_share_of_rows": config.max_quarantine_share}
    return {
        "schema": {}, "unreadable_row": limit, "encoding_damage": limit,
        "over_long": {"max_words": config.max_words, **limit}, "unknown_tag": limit, "conflicting_label": limit,
        "exact_duplicate": limit, "near_duplicate": {"jaccard": config.near_duplicate_jaccard, **limit},
        "leakage": limit, "quarantine_share": limit,
    }  # fmt: skip


def _split(split: str, labels: list[str], counts: Counter) -> dict:
    return {"rows": counts[f"kept:{split}"], "tags": {tag: counts[(split, "tag", tag)] for tag in labels}}
