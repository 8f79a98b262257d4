"""Questions with contexts and answers -> rows fit to train on, in three splits, and a quarantine for the rest
(ajuste/rows/checks/spans.py).

    train|validation|test.parquet   row_id, question, context, answers, answer_start, source, location
    quarantine.parquet              row_id, location, reasons, detail, text (the row as JSON)
    labels.json                     an empty list: a span has no classes
    validation.json                 every check with its rule and count of failing rows

The same question to the same context is a duplicate, with another answer a conflict; contexts that are nearly the same
stand in one split alone. The split is decided by the context, so that what is asked of one text stands in one split.
Used by the study `qa`: `ajuste study qa`.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import Field

from ajuste.core.figures import write_json
from ajuste.core.params import Compute
from ajuste.rows.checks.spans import Kind, quarantined, read_all, rules
from ajuste.rows.checks.validation import SetConfig, Work, finish, report_of, validating, write_rows
from ajuste.rows.clean import damage
from ajuste.rows.parquet import read_batches
from ajuste.rows.read.files import columns_of, printable
from ajuste.rows.read.questions import Question, needed, read_questions
from ajuste.rows.sets.questions import QuestionFile, read_set
from ajuste.rows.split import SPLITS, row_id, split_text

KEPT = pa.schema([("row_id", pa.string()), ("question", pa.string()), ("context", pa.string())]
                 + [("answers", pa.list_(pa.string())), ("answer_start", pa.int32())]
                 + [("source", pa.string()), ("location", pa.string())])  # fmt: skip


class QuestionsConfig(SetConfig):
    """Section `validate` of the study. `set` is the folder of the set."""

    max_chars: int = Field(gt=0, description="A longer question and context together go to quarantine.")


def validate_questions(config: QuestionsConfig, compute: Compute, data: Path, out: Path) -> dict:
    """Write the files named above into `out` and return validation.json's content.

    data: the set's folder. Raises DataError: a file that cannot be read, no row left, or too many in quarantine.
    """
    data_set = read_set(data)
    kind = Kind("questions", KEPT, ("question", "context", "answers"), "max_chars", "characters",
                lambda path, file: columns_of(path, file.format), needed, read_questions,
                lambda file, row: _row(config, data, file, row))  # fmt: skip
    with validating(config, out) as work:
        read_all(work, kind, data, data_set.files)
        write_rows(work, KEPT, lambda rows, k: [("answers", len(rows["answers"][k]))], quarantined(kind),
                   _relations(work))  # fmt: skip
    write_json(out / "labels.json", [])
    report = report_of(work, rules(config, kind), ())
    report["splits"] = {split: {"rows": work.counts[f"kept:{split}"]} for split in SPLITS}
    return finish(work, report)


def _row(config: QuestionsConfig, data: Path, file: QuestionFile, row: Question) -> dict:
    """A question with its names and measures; the row id is of what stands in the file."""
    source = Path(file.path).stem
    identity = row.raw if row.problem else json.dumps([row.question, row.context, row.answers, row.answer_start])
    about = split_text(row.raw if row.problem else row.context)
    answers = [printable(answer) for answer in row.answers]
    return {
        "row_id": row_id(config.set, identity, "", source),
        "question": printable(row.question), "context": printable(row.context),
        "answers": answers, "answer_start": row.answer_start,
        "source": source, "location": f"{data}/{file.path}:{row.line}",
        "raw": printable(row.raw) if row.problem else None, "problem": row.problem,
        "damage": sum(map(damage, (row.question, row.context, *row.answers))),
        "size": len(row.question) + len(row.context), "unknown": None,
        "about": about, "same": json.dumps([split_text(row.question), about]), "said": answers,
    }  # fmt: skip


def _relations(work: Work) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Duplicates as ajuste/rows/duplicates.py finds them, without contexts that are near each other inside a split:
    many questions are asked of one text."""
    duplicate_of, conflict_with, near_of = work.duplicates.judge()
    parts = [batch["split"].to_numpy() for batch in read_batches(work.staged, work.config.batch_rows, ["split"])]
    splits = np.concatenate([np.zeros(0, np.int8), *parts])  # `sample` may have left no row
    return duplicate_of, conflict_with, np.where((near_of >= 0) & (splits == splits[near_of]), -1, near_of)
