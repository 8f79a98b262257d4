"""Rows of train that share words in a row with what judges the model: n-gram decontamination (ajuste/rows/ngrams.py).

    rule     a row is contaminated if one of its n-grams stands in an evaluation row

What judges the model: every text of a set of kind `control`; of a set of instructions, preferences or classes the
rows of validation and test. Where a text is too short for an n-gram, near duplicates guard alone.
GPT-3 (Brown et al. 2020) used 13 words, and cut out the overlap; here the row leaves.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from ajuste.core.errors import DataError
from ajuste.rows.layouts.instructions import to_row
from ajuste.rows.ngrams import Ngrams
from ajuste.rows.read.comparisons import read_comparisons
from ajuste.rows.read.records import read_records
from ajuste.rows.read.texts import read_rows
from ajuste.rows.sets import classification, control, instructions, preferences
from ajuste.rows.sets.base import kind_of, read_values
from ajuste.rows.split import split_of, split_text, text_digest

BATCH_ROWS = 4096

# of a row that can be read: file:line, source, the text that decides its split or None if all rows judge, its texts
Said = tuple[str, str, str | None, list[str]]


def ngrams_of(data: Path, name: str, n: int) -> Ngrams:
    """The n-grams of the evaluation rows of a set. `data`: the folder of all sets. Raises DataError."""
    kind = kind_of(read_values(data / name))
    if kind not in READERS:
        raise DataError(f"data/{name} is a set of kind {kind}: what judges is of kind {', '.join(READERS)}")
    ngrams = Ngrams(n)
    for place, _, about, texts in READERS[kind](data / name):
        if about is None or _judges(about):
            ngrams.add(texts, f"data/{name}/{place}")
    ngrams.sort()
    return ngrams


def of_classification(folder: Path) -> Iterator[Said]:
    """The rows of a set of classes."""
    for file in classification.read_set(folder).files:
        for batch in read_rows(folder / file.path, file.format, file.columns, BATCH_ROWS):
            for row in batch:
                yield f"{file.path}:{row.line}", row.source or Path(file.path).stem, row.text, [row.text]


def of_instructions(folder: Path) -> Iterator[Said]:
    """The rows of a set of instructions that have messages."""
    for file in instructions.read_set(folder).files:
        for batch in read_records(folder / file.path, file.format, BATCH_ROWS, file.layout == "tagged"):
            for record in batch:
                row = to_row(record, file.layout, file.columns, file.phrasings(), file.label_names)
                if row.messages:
                    source = row.source or file.name or Path(file.path).stem
                    texts = [message["content"] for message in row.messages]
                    yield f"{file.path}:{record.line}", source, split_source(row.messages, row.split), texts


def of_control(folder: Path) -> Iterator[Said]:
    """The rows of a control set: all of them judge."""
    for file in control.read_set(folder).files:
        for batch in read_records(folder / file.path, file.format, BATCH_ROWS):
            for record in batch:
                yield f"{file.path}:{record.line}", file.name, None, list(_texts(record.values or {}))


def of_preferences(folder: Path) -> Iterator[Said]:
    """The rows of a set of preferences that can be read."""
    found = preferences.read_set(folder)
    for file in (file for file in found.files if file.layout != "raters"):
        for batch in read_comparisons(folder, found, file, BATCH_ROWS):
            for row in batch:
                texts = [*(turn["content"] for turn in row.prompt), *row.responses]
                if texts:
                    yield f"{file.path}:{row.line}", row.source or file.name or Path(file.path).stem, row.about(), texts


READERS: dict[str, Callable[[Path], Iterator[Said]]] = {
    "control": of_control,
    "instructions": of_instructions,
    "classification": of_classification,
    "preferences": of_preferences,
}


def split_source(messages: list[dict], split: str | None) -> str:
    """The text that decides the split of an instruction: its first user turn, or what its layout says."""
    users = [message["content"] for message in messages if message["role"] != "system"]
    return split if split is not None else users[0] if users else ""


def _judges(text: str) -> bool:
    """Whether a row of this split text is in validation or test."""
    return split_of(text_digest(split_text(text))) > 0


def _texts(value: object) -> Iterator[str]:
    """All texts inside a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
