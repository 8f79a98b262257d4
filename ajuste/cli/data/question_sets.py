"""How `ajuste data add` and `show` treat files of questions whose answers stand in a context."""

from pathlib import Path

from ajuste.cli.data import use as in_params
from ajuste.cli.data.sets import BATCH_ROWS, Added, Asked, Seen, dropped, listed_columns
from ajuste.core.errors import DataError, UsageError
from ajuste.rows.read.files import columns_of, printable
from ajuste.rows.read.questions import Question, needed, read_questions
from ajuste.rows.sets.base import check_set
from ajuste.rows.sets.questions import QuestionColumns, QuestionFile, QuestionSet

STUDY = "qa"  # trains on such sets
LAYOUTS = ("squad",)
FORMATS = ("json", "jsonl", "parquet")
NAMES = ("question", "context", "answers")


def is_for_questions(path: Path, form: str, mapping: dict[str, str]) -> bool:
    """Whether a file that makes a new set holds questions: by its columns."""
    return form in FORMATS and {mapping.get(key, key) for key in NAMES} <= set(columns_of(path, form))


def prepare(asked: Asked, path: Path, own: str, form: str, old: QuestionSet | None) -> Added:
    """The set with the file, once the whole file was read."""
    file = file_of(path, own, form, asked)
    seen = look(path, file)
    files = [part.model_dump(exclude_none=True) for part in [*(old.files if old else []), file]]
    values = {"kind": "questions", "licence": old.licence if old else asked.licence, "files": files}
    new = check_set(values, "set.yaml", QuestionSet)
    said = [contents(seen), *dropped(path, form, {*needed(file), file.columns.answer_start})]
    return Added(new, seen, "squad", said, lambda: in_params.use_in_study(STUDY, asked.name, asked.use))


def file_of(path: Path, own: str, form: str, asked: Asked) -> QuestionFile:
    """The entry of set.yaml for a file. Raises UsageError or DataError."""
    if form not in FORMATS:
        raise UsageError(f"{path}: give questions as JSON, JSON Lines or Parquet, not {form}")
    if asked.labels:
        raise UsageError("--labels names classes or tags, and questions have none")
    known = ", ".join(QuestionColumns.model_fields)
    wrong = sorted(asked.mapping.keys() - QuestionColumns.model_fields.keys())
    if wrong:
        raise UsageError(f"--map {wrong[0]}={asked.mapping[wrong[0]]}: questions have the columns {known}")
    file = QuestionFile(path=own, format=form, columns=QuestionColumns(**asked.mapping),
                        source=asked.source or f"path:{own}")  # fmt: skip
    if not set(needed(file)) <= set(columns_of(path, form)):
        raise DataError(
            f"{path} has not the columns of questions, {', '.join(needed(file))}: its columns are "
            f"{listed_columns(path, form)}. Name yours, such as --map context=COLUMN"
        )
    return file


def look(path: Path, file: QuestionFile) -> Seen:
    """Read the whole file once. Raises DataError for what is wrong with it as a whole."""
    seen = Seen()
    for batch in read_questions(path, file, BATCH_ROWS):
        good = seen.readable(path, batch, [row.problem for row in batch])
        seen.values.update(len(row.answers) for row in good)
        for row in good:
            seen.place(row.context)
    seen.check_any(path, "questions")
    return seen


def contents(seen: Seen) -> str:
    """What the rows hold, in one line."""
    return ", ".join(f"questions with {n} answer{'s' * (n > 1)} {rows:,}" for n, rows in sorted(seen.values.items()))


def shown(row: Question) -> str:
    """One line that says what a row holds."""
    return f"  line {row.line}: {printable(row.question)[:80]} | {printable(row.answers[0])[:60]}"
