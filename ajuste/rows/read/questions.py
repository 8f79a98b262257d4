"""Questions of a file with their contexts and answers, in batches, with the line where each begins.

    {"question", "context", "answers": ["Denver Broncos"], "answer_start": 177}
    {"question", "context", "answers": {"text": ["Denver Broncos"], "answer_start": [177]}}       SQuAD as published

A row that cannot be read keeps its place and says why in `problem`; so does one whose context has not the answer at
that character, for it would teach the wrong span.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ajuste.rows.clean import visible
from ajuste.rows.layouts.turns import Unfit, listed, text_of
from ajuste.rows.read.as_json import as_json
from ajuste.rows.read.files import columns_of
from ajuste.rows.read.records import Record, check_needed, read_records
from ajuste.rows.sets.questions import QuestionFile


@dataclass(slots=True)
class Question:
    """One row. `problem` says why it could not be read, else it is None; then `raw` is the row as it stands there."""

    line: int
    question: str = ""
    context: str = ""
    answers: list[str] = field(default_factory=list)  # the first one stands in the context at answer_start
    answer_start: int = 0
    raw: str = ""
    problem: str | None = None


def needed(file: QuestionFile) -> list[str]:
    """The columns that the file must have."""
    return [file.columns.question, file.columns.context, file.columns.answers]


def read_questions(path: Path, file: QuestionFile, batch_rows: int) -> Iterator[list[Question]]:
    """Batches of at most `batch_rows` questions. Raises DataError for what is wrong with the file as a whole."""
    check_needed(path, columns_of(path, file.format), needed(file), "questions")
    for batch in read_records(path, file.format, batch_rows):
        yield [_question(record, file) for record in batch]


def _question(record: Record, file: QuestionFile) -> Question:
    if record.problem:
        return Question(record.line, raw=record.text, problem=record.problem)
    row = Question(record.line)
    try:
        row.question, row.context = (text_of(record.values, name) for name in needed(file)[:2])
        row.answers, row.answer_start = _answers(record.values, file)
        for name, text in (("question", row.question), ("context", row.context)):
            if not visible(text):
                raise Unfit(f"the {name} is empty")
        if row.context[row.answer_start : row.answer_start + len(row.answers[0])] != row.answers[0]:
            raise Unfit(f"the context has no `{row.answers[0][:60]}` at character {row.answer_start}")
    except Unfit as wrong:
        return Question(record.line, raw=as_json(record.values), problem=str(wrong))
    return row


def _answers(values: dict, file: QuestionFile) -> tuple[list[str], int]:
    """The answers of a row, and where the first one begins."""
    answers, start = listed(values.get(file.columns.answers)), values.get(file.columns.answer_start)
    if isinstance(answers, dict):
        answers, start = answers.get("text"), answers.get("answer_start")
    answers = [answers] if isinstance(answers, str) else answers
    start = start[0] if isinstance(start, list) and start else start
    if not isinstance(answers, list) or not answers or not all(isinstance(text, str) and text for text in answers):
        raise Unfit("the answers are no list of texts, or an empty one: questions without an answer are not learnt")
    if isinstance(start, bool) or not isinstance(start, int) or start < 0:
        raise Unfit("the answer_start is no character of the context")
    return answers, start
