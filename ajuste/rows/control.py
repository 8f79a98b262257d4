"""Control sets: texts and questions that no stage trains on, which tell what a model has forgotten.

    layout  columns                       item
    text    text                          a text: log p of its tokens
    boolq   passage, question, answer     answer True or False; asked as below
    piqa    question, options, answer     options "A. first\\nB. second"; answer: one of these lines

Questions are put as lm-evaluation-harness puts them, without a chat template, so that the base and a model with
another template get the same text: "<passage>\\nQuestion: <question>?\\nAnswer:" and " no" or " yes";
"Question: <question>\\nAnswer:" and each option after a blank.

A broken line ends the reading with its number: what judges models must be whole.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from ajuste.core.errors import DataError
from ajuste.rows.read.records import read_records
from ajuste.rows.sets.control import read_set

BATCH_ROWS = 1024
FIELDS = {"text": ("text",), "boolq": ("passage", "question", "answer"), "piqa": ("question", "options", "answer")}
YES_NO = {"false": 0, "true": 1}
OPTION = re.compile(r"\n(?=[A-Z]\. )")


@dataclass(frozen=True, slots=True)
class Item:
    """A text, or a question with its choices. `answer` is the number of the right choice, None of a text."""

    set: str
    row_id: str  # first 16 hex digits of sha256(JSON of [set, text, choices]): the file's order decides nothing
    text: str
    choices: tuple[str, ...] = ()
    answer: int | None = None
    by_length: bool = False  # choices are judged by log p a character

    @property
    def task(self) -> str:
        return "choice" if self.choices else "text"


def read_control(folder: Path) -> dict[str, list[Item]]:
    """Items of each control set of a folder of data/, by row id, each once.

    Raises DataError that names the file and the line for a row that is not of its layout.
    """
    found: dict[str, list[Item]] = {}
    for file in read_set(folder).files:
        items = {}
        for batch in read_records(folder / file.path, file.format, BATCH_ROWS):
            for record in batch:
                where = f"{folder / file.path} line {record.line}"
                if record.problem:
                    raise DataError(f"{where}: {record.problem}")
                text, choices, answer = _parse(record.values, file.layout, where)
                identifier = _row_id(file.name, text, choices)
                item = Item(file.name, identifier, text, choices, answer, by_length=file.layout == "piqa")
                items[item.row_id] = item
        if not items:
            raise DataError(f"{folder / file.path} has no rows")
        found[file.name] = [items[key] for key in sorted(items)]
    return found


def _parse(values: dict[str, object], layout: str, where: str) -> tuple[str, tuple[str, ...], int | None]:
    """(text, choices, number of the right one) of a row."""
    for field in FIELDS[layout]:
        value = values.get(field)
        if not isinstance(value, str | bool) or not str(value).strip():
            raise DataError(f"{where}: column `{field}` of layout {layout} is missing or empty")
    row = {field: str(values[field]).strip() for field in FIELDS[layout]}
    if layout == "text":
        return row["text"], (), None
    if layout == "boolq":
        if row["answer"].casefold() not in YES_NO:
            raise DataError(f"{where}: `answer` is {row['answer']!r}, and layout boolq wants True or False")
        prompt = f"{row['passage']}\nQuestion: {row['question'].rstrip('?')}?\nAnswer:"
        return prompt, (" no", " yes"), YES_NO[row["answer"].casefold()]
    options = [option.strip() for option in OPTION.split(row["options"])]
    letters = [option[:2] for option in options]
    if len(options) < 2 or letters != [f"{chr(65 + i)}." for i in range(len(options))]:
        raise DataError(f"{where}: `options` of layout piqa are lines A. and B., not {row['options']!r}")
    if row["answer"] not in options:
        raise DataError(f"{where}: `answer` is none of the options: {row['answer']!r}")
    choices = tuple(f" {option[2:].strip()}" for option in options)
    return f"Question: {row['question']}\nAnswer:", choices, options.index(row["answer"])


def _row_id(name: str, text: str, choices: tuple[str, ...]) -> str:
    canonical = json.dumps([name, text, *choices], separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:16]
