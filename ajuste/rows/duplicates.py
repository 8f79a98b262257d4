"""Exact duplicates, conflicting labels and near duplicates of any number of rows, out of core.

    shingles   the character 5-grams of a row's split text, hashed to 64 bits (a language without blanks works too)
    J(a, b)    = |a and b| / |a or b|, the Jaccard similarity of two rows' shingles
    MinHash    P[signatures agree in one place] = J. 256 places in b bands of r: two rows become candidates if a whole
               band agrees, with probability 1 - (1 - J^r)^b; r is the largest that finds 99 % at the threshold

    exact      same split text, same label: the first in file order stays
    conflict   same split text, different labels: none stays
    near       J >= threshold, counted exactly on each candidate's text. Groups are the connected components over all
               splits; test stays before validation before train, then the lowest row id

Signatures come from rensa (MinHash in Rust, 19 times as fast as datasketch: benchmarks/data.py). Texts and band
keys lie in files of `scratch`; one band is sorted at a time, so memory grows by some 60 bytes a row, not by its text.
Bands with more than 16 equal keys are compared with the first and the next row only, so that a template repeated in
every row costs no square: then a row is found through its chain of neighbours.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np

N_GRAM = 5
PLACES = 256
SEED = 1
FOUND_SHARE = 0.99  # of the pairs at the threshold
ALL_PAIRS = 16
BATCH_ROWS = 1024
KEEP_FIRST = np.array([2, 1, 0])  # split index (train, validation, test) -> its turn: test stays first


def shingles(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all character 5-grams (uint64, flat, repeats kept) and the offsets [rows + 1] of each text's own.

    A text shorter than five characters is padded to one shingle.
    """
    padded = [text.ljust(N_GRAM, "\0") for text in texts]
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    lengths = np.array([len(text) for text in padded])
    count = len(codes) - N_GRAM + 1
    hashes = np.zeros(count, np.uint64)
    for i in range(N_GRAM):  # polynomial over the code points, wrapping at 2^64
        hashes = hashes * np.uint64(0x100000001B3) + codes[i : i + count]
    hashes = _mix(hashes)
    within = np.ones(count, bool)  # windows that do not cross from one text into the next
    ends = np.cumsum(lengths)[:-1]
    for back in range(1, N_GRAM):
        within[ends - back] = False
    offsets = np.concatenate([[0], np.cumsum(lengths - N_GRAM + 1)])
    return hashes[within], offsets.astype(np.uint64)


def signatures(texts: list[str]) -> np.ndarray:
    """MinHash signatures [rows, 256], uint32."""
    import rensa

    hashes, offsets = shingles(texts)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, PLACES, SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32)


def band_rows(jaccard: float) -> int:
    """r: the most rows a band can have so that 99 % of the pairs at the threshold become candidates."""
    fits = [r for r in range(1, 33) if 1 - (1 - jaccard**r) ** (PLACES // r) >= FOUND_SHARE]
    return max(fits, default=1)


def _mix(values: np.ndarray) -> np.ndarray:
    """Spread the bits (the finalizer of MurmurHash3)."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


class Duplicates:
    """Takes rows batch by batch, then judges them all. Rows are numbered in the order they come."""

    def __init__(self, scratch: Path, jaccard: float) -> None:
        self.jaccard = jaccard
        self.scratch = scratch
        self._texts = (scratch / "texts").open("w+b")
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._shingles_of = lru_cache(4096)(self._read_shingles)

    def add(self, normals: list[str], digests: list[bytes], labels: np.ndarray, splits: np.ndarray,
            ids: np.ndarray, eligible: np.ndarray) -> None:  # fmt: skip
        """A batch: split texts, their sha256, label ids, split indices, row ids as uint64, and whether a row counts.

        A row that is broken anyway must not throw out a good one: it is not eligible.
        """
        encoded = [
            text.encode("utf-8", "surrogatepass") if ok else b"" for text, ok in zip(normals, eligible, strict=True)
        ]
        self._texts.write(b"".join(encoded))
        keys = np.frombuffer(b"".join(digest[:16] for digest in digests), dtype="<u8").reshape(-1, 2)
        sizes = np.array([len(text) for text in encoded], np.int64)
        self._parts.append((keys, labels.astype(np.int32), splits.astype(np.int8), ids, eligible.astype(bool), sizes))

    def judge(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Three int64 arrays over all rows, -1 where there is nothing to say:

        the row that an exact duplicate repeats, a row whose label conflicts, the row that a near duplicate leaves to.
        """
        if not self._parts:
            return (np.full(0, -1),) * 3
        self._texts.flush()
        keys, labels, splits, ids, eligible, sizes = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        self._parts.clear()
        self._offsets = np.concatenate([[0], np.cumsum(sizes)])
        duplicate_of, conflict_with = _exact(keys, labels, eligible)
        candidates = np.flatnonzero(eligible & (duplicate_of < 0) & (conflict_with < 0))
        near_of = np.full(len(eligible), -1)
        parents = self._near(candidates)
        order = np.lexsort((ids[candidates], KEEP_FIRST[splits[candidates]], parents))
        first = np.concatenate([[True], np.diff(parents[order]) > 0]) if len(order) else np.zeros(0, bool)
        kept = (
            candidates[order][np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))] if len(order) else order
        )
        near_of[candidates[order]] = np.where(first, -1, kept)
        return duplicate_of, conflict_with, near_of

    def close(self) -> None:
        self._texts.close()

    def _near(self, rows: np.ndarray) -> np.ndarray:
        """For each of `rows` the number of its group."""
        parents = np.arange(len(rows))
        if len(rows) < 2:
            return parents
        r = band_rows(self.jaccard)
        bands = PLACES // r
        paths = [self.scratch / f"band-{band}" for band in range(bands)]
        files = [path.open("wb") for path in paths]
        for begin in range(0, len(rows), BATCH_ROWS):
            texts = [self._text(row) for row in rows[begin : begin + BATCH_ROWS]]
            matrix = signatures(texts).astype(np.uint64)
            for band, file in enumerate(files):
                key = np.full(len(texts), band, np.uint64)
                for column in range(band * r, band * r + r):
                    key = _mix(key * np.uint64(31) + matrix[:, column])
                file.write(key.tobytes())
        for file in files:
            file.close()
        for path in paths:
            self._join(np.fromfile(path, np.uint64), rows, parents)
            path.unlink()
        return np.array([_root(parents, i) for i in range(len(rows))])

    def _join(self, keys: np.ndarray, rows: np.ndarray, parents: np.ndarray) -> None:
        """Unite the rows that share a band key and are as similar as the threshold asks."""
        order = np.argsort(keys, kind="stable")
        same = np.flatnonzero(np.diff(keys[order]) == 0)
        if not len(same):
            return
        for run in np.split(same, np.flatnonzero(np.diff(same) > 1) + 1):
            members = order[run[0] : run[-1] + 2]
            for i, j in _pairs(len(members)):
                a, b = members[i], members[j]
                root_a, root_b = _root(parents, a), _root(parents, b)
                if root_a != root_b and self._similarity(rows[a], rows[b]) >= self.jaccard:
                    parents[max(root_a, root_b)] = min(root_a, root_b)

    def _similarity(self, a: int, b: int) -> float:
        one, other = self._shingles_of(int(a)), self._shingles_of(int(b))
        common = len(np.intersect1d(one, other, assume_unique=True))
        return common / (len(one) + len(other) - common)

    def _read_shingles(self, row: int) -> np.ndarray:
        return np.unique(shingles([self._text(row)])[0])

    def _text(self, row: int) -> str:
        begin, end = self._offsets[row], self._offsets[row + 1]
        self._texts.seek(begin)
        return self._texts.read(end - begin).decode("utf-8", "surrogatepass")


def _exact(keys: np.ndarray, labels: np.ndarray, eligible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the earlier row that each exact duplicate repeats, a row of another label with the same text); -1 for none."""
    duplicate_of, conflict_with = np.full(len(eligible), -1), np.full(len(eligible), -1)
    rows = np.flatnonzero(eligible)
    if not len(rows):
        return duplicate_of, conflict_with
    order = rows[np.lexsort((rows, keys[rows, 1], keys[rows, 0]))]
    begins = np.concatenate([[0], np.flatnonzero((np.diff(keys[order], axis=0) != 0).any(axis=1)) + 1, [len(order)]])
    for k in np.flatnonzero(np.diff(begins) > 1):
        group = order[begins[k] : begins[k + 1]]
        other = np.flatnonzero(labels[group] != labels[group[0]])
        if len(other):
            conflict_with[group] = np.where(labels[group] != labels[group[0]], group[0], group[other[0]])
        else:
            duplicate_of[group[1:]] = group[0]
    return duplicate_of, conflict_with


def _pairs(count: int) -> list[tuple[int, int]]:
    if count <= ALL_PAIRS:
        return [(i, j) for i in range(count) for j in range(i + 1, count)]
    return [(0, j) for j in range(1, count)] + [(j - 1, j) for j in range(2, count)]


def _root(parents: np.ndarray, i: int) -> int:
    """The group's number, halving the path on the way."""
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = parents[i]
    return int(i)
