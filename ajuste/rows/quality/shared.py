"""The texts of other sets, for the report on texts that stand in two: of every kind that trains or judges."""

from collections.abc import Callable, Iterator
from pathlib import Path

from ajuste.core.errors import DataError
from ajuste.rows.decontaminate import BATCH_ROWS, READERS, Said
from ajuste.rows.read.comparisons import read_comparisons
from ajuste.rows.sets import preferences
from ajuste.rows.sets.base import kind_of, read_values


def texts_of_sets(data: Path, names: list[str]) -> Iterator[tuple[str, str, str]]:
    """(set, source, text) of all texts of other sets. data: the folder of all sets. Raises DataError."""
    readers: dict[str, Callable[[Path], Iterator[Said]]] = {**READERS, "preferences": of_preferences}
    for name in names:
        kind = kind_of(read_values(data / name))
        if kind not in readers:
            known = ", ".join(readers)
            raise DataError(f"data/{name} is a set of kind {kind}: texts are looked for in those of {known}")
        for _, source, _, texts in readers[kind](data / name):
            yield from ((name, source, text) for text in texts)


def of_preferences(folder: Path) -> Iterator[Said]:
    """The rows of a set of preferences that can be read."""
    found = preferences.read_set(folder)
    for file in (file for file in found.files if file.layout != "raters"):
        for batch in read_comparisons(folder, found, file, BATCH_ROWS):
            for row in batch:
                texts = [*(turn["content"] for turn in row.prompt), *row.responses]
                if texts:
                    yield f"{file.path}:{row.line}", row.source or file.name or Path(file.path).stem, row.about(), texts
