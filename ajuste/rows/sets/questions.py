"""A set of questions whose answers stand in a context, as in SQuAD.

    kind: questions
    licence: ...
    files:                                  # path, source and format (json, jsonl, parquet) as everywhere
    - columns: {context: passage}           # optional: question, context, answers, answer_start -> name in the file

`answers` is a list of texts, of which the first stands in the context at character `answer_start`; or, as SQuAD is
published, {text: [...], answer_start: [...]}.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from ajuste.rows.sets import base
from ajuste.rows.sets.base import FileName, Name, Part

KIND = "questions"


class QuestionColumns(Part):
    """Which column of the file holds what."""

    question: Name = "question"
    context: Name = "context"
    answers: Name = "answers"
    answer_start: Name = Field("answer_start", description="Not needed where `answers` holds it.")


class QuestionFile(Part):
    """One file of a set of questions."""

    path: FileName
    format: Literal["json", "jsonl", "parquet"]
    columns: QuestionColumns = QuestionColumns()
    source: Name


class QuestionSet(base.Set):
    """A folder of data/ with questions, contexts and answers."""

    kind: Literal["questions"]
    licence: Name
    files: list[QuestionFile] = Field(min_length=1)


def read_set(folder: Path) -> QuestionSet:
    """The set.yaml of a folder. Raises DataError, also for a set of another kind."""
    return base.read_set(folder, KIND, QuestionSet)
