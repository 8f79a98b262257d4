"""Rows of train that share words in a row with what judges the model: n-gram decontamination.

    words    the split text with everything that is neither letter nor digit as a blank
    n-gram   n words in a row inside one text, hashed to 64 bits: with codes c_i and an odd P, modulo 2^64,
             hash(a..b) = sum of c_i P^i over a..b, times P^-a, so that all windows of a text come from one running sum
    rule     a row is contaminated if one of its n-grams stands in an evaluation row

What judges the model: every text of a set of kind `control`; of other sets the rows of validation and test. A text of
fewer than n words has no n-gram, and a language without blanks has few words: there the near duplicates guard alone.
GPT-3 (Brown et al. 2020) used 13 words, and cut out the overlap; here the row leaves. Memory: 12 bytes an evaluation
n-gram. Private to tasks/validate/instructions.py.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ajuste.rows.layouts.instructions import to_row
from ajuste.rows.read.comparisons import read_comparisons
from ajuste.rows.read.records import read_records
from ajuste.rows.read.texts import read_rows
from ajuste.rows.sets import read_set
from ajuste.rows.split import split_of, split_text, text_digest

NO_WORD = re.compile(r"[\W_]+")
P = 0x100000001B3
INVERSE = pow(P, -1, 1 << 64)
BATCH_ROWS = 4096


class Ngrams:
    """The n-grams of evaluation rows, and where they stand."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.places: list[str] = []
        self._parts: list[np.ndarray] = []
        self._powers = _powers(1 << 12)
        self._hashes = np.zeros(0, np.uint64)
        self._owners = np.zeros(0, np.uint32)

    def add(self, texts: list[str], place: str) -> None:
        """The texts of one evaluation row; call `sort` when all are added."""
        found = [self.hashes(text) for text in texts]
        self._parts.append(np.unique(np.concatenate([*found, np.zeros(0, np.uint64)])))
        self.places.append(place)

    def sort(self) -> None:
        owners = np.repeat(np.arange(len(self._parts), dtype=np.uint32), [len(part) for part in self._parts])
        hashes = np.concatenate([*self._parts, np.zeros(0, np.uint64)])
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._owners, self._parts = hashes[order], owners[order], []

    def find(self, texts: list[str]) -> str | None:
        """The place of the first evaluation row that shares an n-gram with one of the texts."""
        if not len(self._hashes):
            return None
        wanted = np.concatenate([self.hashes(text) for text in texts])
        at = np.searchsorted(self._hashes, wanted)
        hit = at[(at < len(self._hashes)) & (self._hashes[np.minimum(at, len(self._hashes) - 1)] == wanted)]
        return self.places[int(self._owners[hit].min())] if len(hit) else None

    def hashes(self, text: str) -> np.ndarray:
        """The hashes [words - n + 1] of a text's n-grams, uint64."""
        words = NO_WORD.sub(" ", split_text(text)).strip()
        codes = np.frombuffer(words.encode("utf-32-le", "surrogatepass"), "<u4")
        blanks = np.flatnonzero(codes == 32)
        if not words or len(blanks) + 1 < self.n:
            return np.zeros(0, np.uint64)
        if len(codes) > len(self._powers[0]):
            self._powers = _powers(2 * len(codes))
        powers, inverses = self._powers
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(codes.astype(np.uint64) * powers[: len(codes)])])
        begins = np.concatenate([[0], blanks + 1])
        ends = np.concatenate([blanks, [len(codes)]])
        first, last = begins[: len(begins) - self.n + 1], ends[self.n - 1 :]
        hashes = (sums[last] - sums[first]) * inverses[first]
        return hashes ^ (hashes >> np.uint64(31))


def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """P^i and P^-i modulo 2^64 for i < count."""
    tables = []
    for base in (P, INVERSE):
        table = np.full(count, base, np.uint64)
        table[0] = 1
        tables.append(np.cumprod(table, dtype=np.uint64))
    return tables[0], tables[1]


def ngrams_of(data: Path, name: str, n: int) -> Ngrams:
    """The n-grams of the evaluation rows of a set. `data`: the folder of all sets. Raises DataError."""
    ngrams = Ngrams(n)
    for place, _, about, texts in rows_of(data / name):
        if about is None or _judges(about):
            ngrams.add(texts, f"data/{name}/{place}")
    ngrams.sort()
    return ngrams


def rows_of(folder: Path) -> Iterator[tuple[str, str, str | None, list[str]]]:
    """(file:line, source, what decides its split or None, texts) of every row of a set that can be read."""
    found = read_set(folder)
    for file in found.files:
        name, path = getattr(file, "name", None) or Path(file.path).stem, folder / file.path
        if found.kind == "classification":
            for batch in read_rows(path, file.format, file.columns, BATCH_ROWS):
                yield from ((f"{file.path}:{row.line}", row.source or name, row.text, [row.text]) for row in batch)
        elif found.kind == "preferences":
            for batch in read_comparisons(folder, found, file, BATCH_ROWS) if file.layout != "raters" else ():
                for row in batch:
                    texts = [*(turn["content"] for turn in row.prompt), *row.responses]
                    if texts:
                        yield f"{file.path}:{row.line}", row.source or name, row.about(), texts
        else:
            for batch in read_records(path, file.format, BATCH_ROWS, getattr(file, "layout", "") == "tagged"):
                for record in batch:
                    place = f"{file.path}:{record.line}"
                    if found.kind == "control":
                        yield place, name, None, list(_texts(record.values or {}))
                        continue
                    row = to_row(record, file.layout, file.columns, file.phrasings(), file.label_names)
                    if row.messages:
                        texts = [message["content"] for message in row.messages]
                        yield place, row.source or name, split_source(row.messages, row.split), texts


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
