"""Sentences of a file, words and their tags, in batches, with the line where each begins.

JSON, JSON Lines and Parquet have a list of words and a list of tags a row. Of CoNLL files a sentence is the lines up to
a blank one: the word is the first column, the tag the last, and a line that begins with -DOCSTART- or # is none.
A row that cannot be read keeps its place and says why in `problem`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ajuste.rows.clean import visible
from ajuste.rows.layouts.turns import listed
from ajuste.rows.read.as_json import as_json
from ajuste.rows.read.files import batched, check_file, columns_of
from ajuste.rows.read.opened import open_bytes
from ajuste.rows.read.records import Record, check_needed, read_records
from ajuste.rows.sets.words import WordFile


@dataclass(slots=True)
class Sentence:
    """One row. `problem` says why it could not be read, else it is None; then `raw` is the row as it stands there."""

    line: int
    words: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    raw: str = ""
    problem: str | None = None


def columns_in(path: Path, file: WordFile) -> list[str]:
    """The columns of a file; CoNLL has a first and a last one."""
    if file.format != "conll":
        return columns_of(path, file.format)
    check_file(path, "conll")
    return needed(file)


def needed(file: WordFile) -> list[str]:
    """The columns that the file must have."""
    return [file.columns.words, file.columns.tags]


def read_words(path: Path, file: WordFile, batch_rows: int) -> Iterator[list[Sentence]]:
    """Batches of at most `batch_rows` sentences. Raises DataError for what is wrong with the file as a whole."""
    check_needed(path, columns_in(path, file), needed(file), "words")
    conll = file.format == "conll"
    batches = batched(path, _conll(path), batch_rows) if conll else read_records(path, file.format, batch_rows)
    for batch in batches:
        yield [_sentence(record, file) for record in batch]


def _sentence(record: Record, file: WordFile) -> Sentence:
    if record.problem:
        return Sentence(record.line, raw=record.text, problem=record.problem)
    words, tags = (listed(record.values.get(name)) for name in needed(file))
    problem = None
    for name, value in zip(needed(file), (words, tags), strict=True):
        if not isinstance(value, list) or not all(isinstance(part, str | int) for part in value):
            problem = problem or f"`{name}` is no list of texts"
    if not problem and len(words) != len(tags):
        problem = f"there are {len(words)} words and {len(tags)} tags"
    if not problem and not all(visible(str(word)) for word in words):
        problem = "a word is empty"
    if problem:
        return Sentence(record.line, raw=as_json(record.values), problem=problem)
    names = file.label_names or {}
    return Sentence(record.line, [str(word) for word in words], [names.get(str(tag), str(tag)) for tag in tags])


def _conll(path: Path) -> Iterator[Record]:
    """The sentences of a CoNLL file as records with the columns `words` and `tags`."""
    first, lines = 1, []
    with open_bytes(path) as file:
        for number, line in enumerate([*file, b"\n"], 1):
            text = line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").decode("utf-8", "surrogateescape")
            if text.strip() and not text.startswith(("-DOCSTART-", "# ")):
                first = first if lines else number
                lines.append(text.split())
            elif not text.strip() and lines:
                yield _record(first, lines)
                lines = []


def _record(first: int, lines: list[list[str]]) -> Record:
    bare = [i for i, fields in enumerate(lines) if len(fields) < 2]
    if bare:
        text = "\n".join(" ".join(fields) for fields in lines)
        return Record(first, text=text, problem=f"line {first + bare[0]} has no tag after its word")
    return Record(first, {"words": [fields[0] for fields in lines], "tags": [fields[-1] for fields in lines]})
