"""Questions with contexts and answers -> rows fit to train on, in three splits, and a quarantine for the rest.

    1. read     questions in batches with file:line; each is judged by itself (ajuste/rows/checks/spans.py)
    2. compare  the same question to the same context is a duplicate, with another answer a conflict, so that none
                stays; contexts that are nearly the same stand in one split alone (ajuste/rows/duplicates.py)
    3. judge    rows are written to their split, failing rows to quarantine with their reasons

    train|validation|test.parquet   row_id, question, context, answers, answer_start, source, location
    quarantine.parquet              row_id, location, reasons, detail, text (the row as JSON)
    labels.json                     an empty list: a span has no classes
    validation.json                 every check with its rule and count of failing rows

The split is decided by the context, so that what is asked of one text stands in one split. Used by the study `qa`:
`ajuste study qa`.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import Field

from ajuste.core.figures import write_json
from ajuste.core.params import Compute
from ajuste.rows.checks.spans import columns_of, row_checks
from ajuste.rows.checks.validation import SetConfig, Work, finish, report_of, validating, write_rows
from ajuste.rows.clean import damage
from ajuste.rows.parquet import ParquetRows, read_batches
from ajuste.rows.read.files import columns_of as columns_in
from ajuste.rows.read.files import printable
from ajuste.rows.read.questions import Question, needed, read_questions
from ajuste.rows.read.records import check_needed
from ajuste.rows.sets.questions import QuestionFile, QuestionSet, read_set
from ajuste.rows.split import SPLITS, in_sample, row_id, split_of, split_text, text_digest

TEXTS = pa.list_(pa.string())
KEPT = pa.schema([("row_id", pa.string()), ("question", pa.string()), ("context", pa.string()), ("answers", TEXTS)]
                 + [("answer_start", pa.int32()), ("source", pa.string()), ("location", pa.string())])  # fmt: skip
STAGED = pa.schema([*KEPT, ("detail", pa.string()), ("raw", pa.string()), ("split", pa.int8()), ("reasons", TEXTS)])


class QuestionsConfig(SetConfig):
    """Section `validate` of the study. `set` is the folder of the set."""

    max_chars: int = Field(gt=0, description="A longer question and context together go to quarantine.")


def validate_questions(config: QuestionsConfig, compute: Compute, data: Path, out: Path) -> dict:
    """Write the files named above into `out` and return validation.json's content.

    data: the set's folder. Raises DataError: a file that cannot be read, no row left, or too many in quarantine.
    """
    data_set = read_set(data)
    with validating(config, out) as work:
        _read_all(work, data, data_set)
        write_rows(work, KEPT, lambda rows, k: [("answers", len(rows["answers"][k]))], _text, _relations(work))
    write_json(out / "labels.json", [])
    report = report_of(work, _rules(config), ())
    report["splits"] = {split: {"rows": work.counts[f"kept:{split}"]} for split in SPLITS}
    return finish(work, report)


def _read_all(work: Work, data: Path, data_set: QuestionSet) -> None:
    config = work.config
    with ParquetRows(work.staged, STAGED) as sink:
        for file in data_set.files:
            path = data / file.path
            found = columns_in(path, file.format)
            if not work.has_columns(found, needed(file)):
                check_needed(path, found, needed(file), "questions")
            for batch in read_questions(path, file, config.batch_rows):
                rows = [_row(config, data, file, row) for row in batch]
                rows = [row for row in rows if in_sample(row["row_id"], config.sample)]
                if rows:
                    _judge_batch(work, rows, sink)


def _row(config: QuestionsConfig, data: Path, file: QuestionFile, row: Question) -> dict:
    """A question with its names and measures; the row id is of what stands in the file."""
    source = Path(file.path).stem
    identity = row.raw if row.problem else json.dumps([row.question, row.context, row.answers, row.answer_start])
    about = split_text(row.raw if row.problem else row.context)
    return {
        "row_id": row_id(config.set, identity, "", source),
        "question": printable(row.question), "context": printable(row.context),
        "answers": [printable(answer) for answer in row.answers], "answer_start": row.answer_start,
        "source": source, "location": f"{data}/{file.path}:{row.line}",
        "raw": printable(row.raw) if row.problem else None, "problem": row.problem,
        "damage": sum(map(damage, (row.question, row.context, *row.answers))),
        "size": len(row.question) + len(row.context),
        "unknown": None, "about": about, "same": json.dumps([split_text(row.question), about]),
    }  # fmt: skip


def _judge_batch(work: Work, rows: list[dict], sink: ParquetRows) -> None:
    reasons = work.reasons(columns_of(rows), row_checks(work.config.max_chars), [row["problem"] for row in rows])
    splits = np.array([split_of(text_digest(row["about"])) for row in rows])
    said = np.array([int(text_digest(json.dumps(row["answers"])).hex()[:7], 16) for row in rows])
    ids = np.array([int(row["row_id"], 16) for row in rows], np.uint64)
    good = np.array([not found for found in reasons])
    same = [text_digest(row["same"]) for row in rows]
    work.duplicates.add([row["about"] for row in rows], same, said, splits, ids, good)
    sink.write({
        **{name: [row[name] for row in rows] for name in (*KEPT.names, "raw")},
        "detail": [_detail(row, found) for row, found in zip(rows, reasons, strict=True)],
        "split": splits.astype(np.int8), "reasons": reasons,
    })  # fmt: skip
    work.counts["read"] += len(rows)


def _relations(work: Work) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Duplicates as ajuste/rows/duplicates.py finds them, without contexts that are near each other inside a split:
    many questions are asked of one text."""
    duplicate_of, conflict_with, near_of = work.duplicates.judge()
    parts = [batch["split"].to_numpy() for batch in read_batches(work.staged, work.config.batch_rows, ["split"])]
    splits = np.concatenate(parts)
    return duplicate_of, conflict_with, np.where((near_of >= 0) & (splits == splits[near_of]), -1, near_of)


def _detail(row: dict, reasons: list[str]) -> str:
    parts = {
        "unreadable_row": row["problem"] or "",
        "encoding_damage": f"{row['damage']} damaged characters",
        "over_long": f"{row['size']} characters",
    }
    return printable("; ".join(parts[reason] for reason in reasons if reason in parts))


def _text(rows: dict, k: int) -> str:
    """The row as JSON, or as it stands in the file if it could not be read."""
    if rows["raw"][k] is not None:
        return rows["raw"][k]
    return json.dumps({name: rows[name][k] for name in ("question", "context", "answers")}, ensure_ascii=False)


def _rules(config: QuestionsConfig) -> dict[str, dict]:
    """Every check in the order of the report, with its numbers."""
    limit = {"max_share_of_rows": config.max_quarantine_share}
    return {
        "schema": {}, "unreadable_row": limit, "encoding_damage": limit,
        "over_long": {"max_chars": config.max_chars, **limit}, "conflicting_label": limit, "exact_duplicate": limit,
        "near_duplicate": {"jaccard": config.near_duplicate_jaccard, **limit}, "leakage": limit,
        "quarantine_share": limit,
    }  # fmt: skip
