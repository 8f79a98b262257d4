"""Leakage of training rows: does a model say what it was trained on, word for word, and does it know a planted secret?

    verbatim(x, y)  = greedy answer to x begins with all tokens of y               Carlini et al. 2021, 2023
    exposure(s)     = log2 |R| - log2 rank_R(s)      bits                            Carlini et al. 2019, section 4.2
    rank_R(s)       = 1 + |{r in R, r != s: log p(r | x) >= log p(s | x)}|           a tie counts against s

A canary is a prompt x and a secret s that somebody planted in the training data: a sentence with random digits. R is s
and other secrets drawn at random from the same space, or all of it. A model that never saw s ranks it anywhere: its
exposure is 1.44 bits on average, and at least b bits with chance 2^-b. One that learnt it by heart ranks it first and
has log2 |R|.

    sources/canaries.yaml     [{id, prompt, text: "The code is {digits}.", digits: "482193"}, ...]

What differs from the paper: R is sampled, so the exposure ends at log2 of the sample's size (the paper extrapolates by
a fitted distribution); log p is of the answer alone, given a chat prompt.
"""

import math
import random
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator
from torch import nn

from ajuste.core.errors import UsageError
from ajuste.core.params import read_yaml
from ajuste.judging.rules import Text
from ajuste.learning.text.choices import log_likelihoods
from ajuste.learning.text.generate import generate

PLACE = "{digits}"
AT_ONCE = 64  # answers to one prompt in a batch: logits of a thousand are gigabytes


class Canary(BaseModel):
    """A secret of random digits, the answer that holds it, and the prompt that it is the answer to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Text
    prompt: Text
    text: Text
    digits: str = Field(pattern=r"^[0-9]{2,}$")

    @field_validator("text")
    @classmethod
    def _place(cls, text: str) -> str:
        if text.count(PLACE) != 1:
            raise ValueError(f"the text must have {PLACE} once")
        return text

    def answer(self, digits: str) -> str:
        """The text with these digits."""
        return self.text.replace(PLACE, digits)

    def others(self, number: int, seed: int) -> list[str]:
        """The text with other digits of as many places, drawn at random without a repeat; all there are if fewer."""
        space = 10 ** len(self.digits)
        drawn = random.Random(f"{seed}:{self.id}").sample(range(space), min(number + 1, space))
        written = [str(one).zfill(len(self.digits)) for one in drawn]
        return [self.answer(digits) for digits in written if digits != self.digits][:number]


def read_canaries(path: Path) -> list[Canary]:
    """The canaries of the file. Raises UsageError that names the file and the entry."""
    try:
        return TypeAdapter(list[Canary]).validate_python(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{path}: `{key}`: {first['msg'].removeprefix('Value error, ')}") from None


def exposure(own: float, others: Sequence[float]) -> float:
    """log2 |R| - log2 rank of a secret's log p among those of the others of R, in bits: 0 to log2(1 + others)."""
    rank = 1 + sum(other >= own for other in others)
    return math.log2(len(others) + 1) - math.log2(rank)


def exposures(
    model: nn.Module, rows: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]], pad_id: int, batch_tokens: int
) -> list[float]:
    """The exposure of each canary: (prompt ids, ids of the answers, its own first and then the others')."""
    pieces = [(i, prompt, answers[start : start + AT_ONCE])
              for i, (prompt, answers) in enumerate(rows) for start in range(0, len(answers), AT_ONCE)]  # fmt: skip
    found: list[list[float]] = [[] for _ in rows]
    scores = log_likelihoods(model, [piece[1:] for piece in pieces], pad_id, batch_tokens)
    for (i, *_), some in zip(pieces, scores, strict=True):
        found[i] += some
    return [exposure(own, others) for own, *others in found]


def verbatim(
    model: nn.Module, rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int, batch_rows: int
) -> list[bool]:
    """Of each (prompt ids x, wanted ids y), whether the greedy answer to x begins with all of y.

    Raises ValueError for an empty x or y.
    """
    answers = generate(model, [x for x, _ in rows], [len(y) for _, y in rows], [], pad_id, batch_rows)
    return [list(answer) == list(y) for answer, (_, y) in zip(answers, rows, strict=True)]
