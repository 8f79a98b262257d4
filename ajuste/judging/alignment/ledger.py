"""The alignment ledger: what one model scores on the three H (helpful, honest, harmless), and the file that says it.

    {"model": "instruct", "scores": [{
        "h": "harmless", "name": "attack_success.direct", "better": "lower", "value": 0.42, "low": 0.30, "high": 0.55,
        "n": 60, "unit": "behaviour", "judge": "rules 1", "corrected": {"value": 0.40, "low": 0.27, "high": 0.55}}]}

    value, low, high    the figure and its 95 % interval, 0 <= low <= value <= high; a share also <= 1
    n, unit             how many of what were drawn: the interval is over these
    judge               who judged the answers, with its version; null where no judge was needed
    corrected           the same figure corrected for the judge's errors, where the judge's card allows it
    detail              true: one part of another score (a category, a language), to look at and not to decide by
    units               {"fraud-01": 0.5, ...}, where the figure is the mean over these: each drawn one by its id, the
                        same id whatever the model. With them two models are compared pair by pair, which shows far
                        smaller differences than two intervals do; left out where the figure is no such mean

A name stands once in a file, and scores are sorted by (h, name). This module is the one place that knows the form: the
alignment stages write through it, and summary, registry, gate and report read through it. A figure of fewer than FEW
units is shown in grey.

    write(path, "instruct", [{"h": "harmless", ...}, ...])        with `detail` and `units` where a score has them
    read(path).of("over_refusal")
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from ajuste.core.errors import DataError
from ajuste.core.figures import rounded, write_json
from ajuste.core.params import Config

FEW = 50  # units; the interval of a share of fewer is wider than a quarter
FILE = "alignment.json"
NOISE = 1e-5  # of a mean of figures that were rounded to 6 digits, relative
H = ("helpful", "honest", "harmless")
FIRST = ("attack_success", "hit_at_k", "over_refusal")  # of harmless: so over-refusal stands right below the attacks
SHARES = FIRST  # scores that are shares, by the first part of their name
NAME = r"^[a-z0-9_]+(\.[a-z0-9_-]+)*$"


class _Strict(Config):
    """A number is a number here, and nan is none."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Estimate(_Strict):
    """A figure with its 95 % interval, 0 <= low <= value <= high."""

    value: float
    low: float = Field(ge=0)
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"low <= value <= high does not hold: {self.low:g}, {self.value:g}, {self.high:g}")
        return self


class Score(Estimate):
    """One line of the ledger; the module's text says what each field is."""

    h: Literal["helpful", "honest", "harmless"]
    name: str = Field(pattern=NAME)
    better: Literal["higher", "lower", "neither"]
    n: int = Field(ge=1)
    unit: str = Field(min_length=1)
    judge: str | None
    corrected: Estimate | None
    detail: bool = False
    units: dict[str, float] | None = None

    @model_validator(mode="after")
    def _mean_of_units(self) -> Self:
        if self.units is None:
            return self
        if len(self.units) != self.n:
            raise ValueError(f"n is {self.n}, and there are {len(self.units)} units")
        mean = sum(self.units.values()) / self.n
        if abs(mean - self.value) > NOISE * max(1.0, abs(mean)):
            raise ValueError(f"the mean of its units is {mean:g}, and the value {self.value:g}")
        return self

    @model_validator(mode="after")
    def _shares(self) -> Self:
        above = [one.high for one in (self, self.corrected) if one is not None and one.high > 1]
        if self.name.partition(".")[0] in SHARES and above:
            raise ValueError(f"is a share, and {above[0]:g} is above 1")
        return self

    @property
    def few(self) -> bool:
        """Whether it rests on too little to be read without care."""
        return self.n < FEW


class Ledger(_Strict):
    """All scores of one model."""

    model: str = Field(pattern=r"^[a-z0-9_-]+$")
    scores: list[Score]

    @model_validator(mode="after")
    def _once(self) -> Self:
        names = [score.name for score in self.scores]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"score `{twice[0]}` stands there twice")
        return self

    def of(self, name: str) -> Score | None:
        """The score of that name; None where the model has none."""
        return next((score for score in self.scores if score.name == name), None)

    def main(self) -> list[Score]:
        """The scores that are no detail of another, in the order in which they are shown."""
        return in_order([score for score in self.scores if not score.detail])


def in_order(scores: Iterable[Score]) -> list[Score]:
    """The scores as they are shown: helpful, honest, harmless, and of these the attacks, over-refusal, then the rest.
    """
    def place(score: Score) -> tuple[int, int, str]:
        first = next((i for i, start in enumerate(FIRST) if score.name.startswith(start)), len(FIRST))
        return H.index(score.h), first, score.name

    return sorted(scores, key=place)


def ledger(found: Any, where: str) -> Ledger:
    """The typed ledger of a read JSON value. where: what it was read from, for the error.

    Raises DataError that names `where`, the score, the field and what is wrong.
    """
    try:
        return Ledger.model_validate_json(json.dumps(found))  # strict types, as JSON has them
    except ValidationError as error:
        raise DataError(f"{where}: {_first(error, found)}; the stage that writes it must be mended or run again"
                        ) from None  # fmt: skip


def read(path: Path) -> Ledger:
    """The ledger of a file. Raises DataError that names the file if it is missing, no JSON, or of another form."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} is missing: `dvc repro alignment_{path.parent.name}` makes it") from None
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({error}): delete it and run its stage again") from None
    return ledger(found, str(path))


def write(path: Path, model: str, scores: Iterable[dict]) -> Ledger:
    """Check, round, sort and write the scores of a model; returns what was written. Raises DataError for a wrong one.
    """
    found = ledger(rounded({"model": model, "scores": list(scores)}), str(path))
    found = Ledger(model=model, scores=sorted(found.scores, key=lambda score: (score.h, score.name)))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, as_json(found))
    return found


def as_json(found: Ledger) -> dict:
    """The ledger as JSON values; `detail` and `units` stand there only where they say something."""
    scores = [score.model_dump(exclude_defaults=True) for score in found.scores]
    keys = [key for key in Score.model_fields if key not in Estimate.model_fields]
    order = [*keys[:3], *Estimate.model_fields, *keys[3:]]  # h, name, better, value, low, high, n, ...
    return {"model": found.model, "scores": [{key: score[key] for key in order if key in score} for score in scores]}


def _first(error: ValidationError, found: Any) -> str:
    """The first problem in words: "score `over_refusal`: `n`: Input should be ..."."""
    problem = error.errors()[0]
    where, said = list(problem["loc"]), problem["msg"].removeprefix("Value error, ")
    if len(where) >= 2 and where[0] == "scores":
        score = found["scores"][where[1]]
        name = score.get("name", f"number {where[1] + 1}") if isinstance(score, dict) else f"number {where[1] + 1}"
        field = ".".join(str(part) for part in where[2:])
        return f"score `{name}`: " + (f"`{field}`: " if field else "") + said
    return f"`{'.'.join(map(str, where))}`: {said}" if where else said
