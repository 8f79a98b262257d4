"""Which test rows are one draw: rows that are alike in a column (ajuste/learning/statistics/paired.py says why).

    a text, a number, a list of token ids     alike where they are equal; null is alike to nothing
    a list of texts or of lists (responses)   alike where they share one; A with B and B with C: all three are one draw
"""

from collections.abc import Hashable, Sequence


def clusters(ids: Sequence[str], values: Sequence[object]) -> dict[object, Hashable]:
    """Row id -> the id of the first row of its cluster. values: of the column, in the order of the ids."""
    parent = {one: one for one in ids}

    def root(one: str) -> str:
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        return one

    first: dict[Hashable, str] = {}
    for one, value in zip(ids, values, strict=True):
        for part in _parts(value):
            parent[root(one)] = root(first.setdefault(part, one))
    return {one: root(one) for one in ids}


def _parts(value: object) -> list[Hashable]:
    if value is None:
        return []
    if isinstance(value, list) and value and isinstance(value[0], str | list):
        return [_hashable(part) for part in value]
    return [_hashable(value)]


def _hashable(value: object) -> Hashable:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
