"""The texts of other sets, for the report on texts that stand in two: of every kind that trains or judges."""

from collections.abc import Iterator
from pathlib import Path

from ajuste.core.errors import DataError
from ajuste.rows.decontaminate import READERS
from ajuste.rows.sets.base import kind_of, read_values


def texts_of_sets(data: Path, names: list[str]) -> Iterator[tuple[str, str, str]]:
    """(set, source, text) of all texts of other sets. data: the folder of all sets. Raises DataError."""
    for name in names:
        kind = kind_of(read_values(data / name))
        if kind not in READERS:
            known = ", ".join(READERS)
            raise DataError(f"data/{name} is a set of kind {kind}: texts are looked for in those of {known}")
        for _, source, _, texts in READERS[kind](data / name):
            yield from ((name, source, text) for text in texts)
