"""Human and AI comparisons in one training set, by a share.

    N rows, of them round(share N) of the judge, the rest of people         0.5 rounds up

Which human rows leave and which of the judge's rows come in is decided by sha256 of the row id, each side by itself:
the same rows in every run and every order, a larger share keeps all that a smaller one took, and share 1 has no human
row. The number of rows does not change with the share, so trainings of several shares have one budget.
"""

import hashlib
from collections.abc import Sequence


def order(row_id: str) -> bytes:
    """What rows are sorted by: a hash of the id, since the ids' own order decides about samples elsewhere."""
    return hashlib.sha256(f"share:{row_id}".encode()).digest()


def chosen(human: Sequence[str], ai: Sequence[str], share: float, rows: int) -> tuple[list[str], list[str]]:
    """The row ids that are taken of each side, `rows` together. human, ai: the ids there are.

    Of the human ids the `rows` of the lowest hashes compete, and the ones of the lowest hashes among them leave. Raises
    ValueError for a share outside 0 to 1, or if one side has too few.
    """
    if not 0 <= share <= 1 or rows < 1:
        raise ValueError(f"a mixture has a share from 0 to 1 and at least one row, not {share:g} and {rows}")
    replaced = int(share * rows + 0.5)
    for name, ids, wanted in (("people's", human, rows - replaced), ("the judge's", ai, replaced)):
        if len(set(ids)) < wanted:
            raise ValueError(f"share {share:g} of {rows} rows takes {wanted} of {name}, and there are {len(set(ids))}")
    ranked = sorted(set(human), key=order)[:rows]
    return ranked[len(ranked) - (rows - replaced) :], sorted(set(ai), key=order)[:replaced]
