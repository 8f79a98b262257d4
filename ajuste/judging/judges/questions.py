"""The questions that a judge of words is asked: each pair in both orders, by the principle that was drawn for it.

    order 1: answer 0 is A, answer 1 is B        order 2: the other way round
"""

from collections.abc import Sequence
from typing import NamedTuple

from ajuste.judging.judges.constitution import Constitution, Language, drawn
from ajuste.judging.judges.opinions import Pair, told

LETTERS = ("A", "B")


class Asked(NamedTuple):
    """A pair's questions: the texts of both orders, and the principle of both."""

    texts: tuple[str, str]
    principle: str


class Questions(NamedTuple):
    """How a judge of words is asked. principles: the names of which each pair gets one, drawn by seed and row id."""

    constitution: Constitution
    language: Language
    principles: Sequence[str]
    seed: int

    def of(self, pair: Pair) -> Asked:
        """The questions of one pair."""
        name = drawn(self.principles, pair.row_id, self.seed)
        orders = (pair.answers, pair.answers[::-1])
        first, second = (
            self.constitution.question(self.language, name, told(pair.prompt), order) for order in orders
        )
        return Asked((first, second), name)
