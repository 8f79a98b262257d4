"""n-grams of words, hashed: which texts share n words in a row with texts that were added before?

    words    the split text with everything that is neither letter nor digit as a blank
    n-gram   n words in a row inside one text, hashed to 64 bits: with codes c_i and an odd P, modulo 2^64,
             hash(a..b) = sum of c_i P^i over a..b, times P^-a, so that all windows of a text come from one running sum

A text of fewer than n words has no n-gram, and a language without blanks has few words. Memory: 12 bytes an n-gram.
"""

import re

import numpy as np

from ajuste.rows.split import split_text

NO_WORD = re.compile(r"[\W_]+")
P = 0x100000001B3
INVERSE = pow(P, -1, 1 << 64)


def words_of(text: str) -> str:
    """Letters and digits alone, a blank between words: what tokenization and punctuation cannot change."""
    return NO_WORD.sub(" ", split_text(text)).strip()


class Ngrams:
    """The n-grams of rows, and where they stand."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.places: list[str] = []
        self._parts: list[np.ndarray] = []
        self._powers = _powers(1 << 12)
        self._hashes = np.zeros(0, np.uint64)
        self._owners = np.zeros(0, np.uint32)

    def add(self, texts: list[str], place: str) -> None:
        """The texts of one row; call `sort` when all are added."""
        found = [self.hashes(text) for text in texts]
        self._parts.append(np.unique(np.concatenate([*found, np.zeros(0, np.uint64)])))
        self.places.append(place)

    def sort(self) -> None:
        owners = np.repeat(np.arange(len(self._parts), dtype=np.uint32), [len(part) for part in self._parts])
        hashes = np.concatenate([*self._parts, np.zeros(0, np.uint64)])
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._owners, self._parts = hashes[order], owners[order], []

    def find(self, texts: list[str]) -> str | None:
        """The place of the first row that shares an n-gram with one of the texts."""
        if not len(self._hashes):
            return None
        wanted = np.concatenate([self.hashes(text) for text in texts])
        at = np.searchsorted(self._hashes, wanted)
        hit = at[(at < len(self._hashes)) & (self._hashes[np.minimum(at, len(self._hashes) - 1)] == wanted)]
        return self.places[int(self._owners[hit].min())] if len(hit) else None

    def hashes(self, text: str) -> np.ndarray:
        """The hashes [words - n + 1] of a text's n-grams, uint64."""
        words = words_of(text)
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
