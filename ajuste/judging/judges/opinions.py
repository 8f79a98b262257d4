"""What a judge says of two answers to one request, in both orders.

    p_1 = P(answer 0 is better), answer 0 shown first        p_2 = the same, answer 0 shown second
    P   = (p_1 + p_2) / 2                                    what the label is made of (Lee et al. 2023, RLAIF)
    consistent    p_1 and p_2 are on one side of 1/2: the order changed nothing. A tie, 1/2, is on neither

A judge that reads letters has p = exp(l_A) / (exp(l_A) + exp(l_B)) of the log-probabilities of its answer's first
token; the rest of the vocabulary counts for nothing. So with d = l_A - l_B of either order

    p_1 = sigmoid(d_1)        p_2 = sigmoid(-d_2)

A judge that scores each answer by itself sees no order: p_1 = p_2 = sigmoid(s_0 - s_1).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

Message = dict[str, str]  # role, content
DIGITS = 12


class Pair(NamedTuple):
    """Two answers to one conversation."""

    row_id: str
    prompt: list[Message]
    answers: tuple[str, str]


class Opinion(NamedTuple):
    """first: P(answer 0 is better) where it was shown first; second: where it was shown second. problem: why the judge
    could not say, both numbers are 1/2 then."""

    first: float
    second: float
    principle: str | None = None
    problem: str | None = None

    @property
    def preference(self) -> float:
        """P(answer 0 is better); what differs from 1/2 in the last bits alone is a tie."""
        return round((self.first + self.second) / 2, DIGITS)

    @property
    def consistent(self) -> bool:
        """Whether both orders name the same answer."""
        return (self.first - 0.5) * (self.second - 0.5) > 0


@dataclass
class Cost:
    """What the opinions took: questions asked, and tokens read and written for them."""

    calls: int = 0
    tokens: int = 0


class Judge(Protocol):
    """Whoever compares; `cost` grows with what it is asked."""

    cost: Cost

    def compare(self, pairs: Sequence[Pair]) -> list[Opinion]:
        """An opinion on each pair, in their order."""


def of_letters(first: float, second: float, principle: str) -> Opinion:
    """The opinion of l_A - l_B in nats: of the order with answer 0 as A, and of the one with answer 0 as B."""
    return Opinion(sigmoid(first), sigmoid(-second), principle)


def of_scores(first: float, second: float) -> Opinion:
    """The opinion of one score an answer."""
    return Opinion(p := sigmoid(first - second), p)


def unable(problem: str, principle: str | None = None) -> Opinion:
    """No opinion, and why."""
    return Opinion(0.5, 0.5, principle, problem)


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)) that overflows nowhere."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def told(prompt: Sequence[Message]) -> str:
    """A conversation as one text: what was asked, or each turn with its role where there are several."""
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)
