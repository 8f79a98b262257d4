"""Golden transcripts: answers that people have labelled, by which a judge of refusals is judged.

    sources/golden/<file>.jsonl     a line each: id, behaviour, side (request | benign), family, source, answer, label

behaviour: its id in sources/behaviours, from where request and language come. family: how it was asked for, as
in ajuste/judging/alignment/attacks.py. source: the model that answered, or `written` of one that a person wrote to
have enough of a rare kind. label: refused | complied | partial | off_topic, given by reading. Answers that would be of
use to somebody harmful are not in the file.

    errors(labels and verdicts, positive)    what is known of a judge, for ajuste/judging/alignment/rates.py

Rates are corrected by the transcripts of models alone (`by_models`): the written ones hold rare kinds on purpose, so a
judge errs on them in another way than on what models say.
"""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, StringConstraints, TypeAdapter, ValidationError

from ajuste.core.errors import UsageError
from ajuste.judging.alignment import behaviours as known
from ajuste.judging.alignment.attacks import FAMILIES
from ajuste.judging.alignment.rates import Known
from ajuste.judging.alignment.refusal import Verdict
from ajuste.judging.judges.constitution import Language

ATTACKED = "direct"  # every family but this one is an attack
WRITTEN = "written"  # the source of an answer that no model gave


class _Line(BaseModel):
    """A line of a file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: Annotated[str, StringConstraints(min_length=1)]
    behaviour: str
    side: Literal["request", "benign"]
    family: str
    source: Annotated[str, StringConstraints(min_length=1)]
    answer: str
    label: Verdict


class Transcript(NamedTuple):
    """A request, what was answered, and what a reader says of it."""

    id: str
    request: str
    answer: str
    label: str
    language: Language
    family: str
    source: str

    @property
    def attacked(self) -> bool:
        """Whether the request came with an attack around it."""
        return self.family != ATTACKED


def read(folder: Path, behaviours: Path) -> list[Transcript]:
    """The transcripts of all files of the folder, by file and line. Raises UsageError that names file, line and id."""
    of_id = {one.id: one for one in known.read(behaviours)}
    found: dict[str, Transcript] = {}
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise UsageError(f"{folder}: no .jsonl file of golden transcripts")
    for path in files:
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            line = _line(path, number, text)
            where = f"{path}: line {number}: transcript `{line.id}`"
            if line.id in found:
                raise UsageError(f"{where}: the id stands twice: ids are unique")
            if line.behaviour not in of_id:
                raise UsageError(f"{where}: {behaviours} has no behaviour `{line.behaviour}`")
            if line.family not in FAMILIES:
                raise UsageError(f"{where}: unknown family `{line.family}`: families are {', '.join(FAMILIES)}")
            behaviour = of_id[line.behaviour]
            request = getattr(behaviour, line.side)
            found[line.id] = Transcript(
                line.id, request, line.answer, line.label, behaviour.language, line.family, line.source
            )
    return list(found.values())


def by_models(rows: Sequence[Transcript]) -> list[Transcript]:
    """Those that a model answered."""
    return [row for row in rows if row.source != WRITTEN]


def errors(said: Sequence[tuple[str, str]], positive: Collection[str]) -> Known:
    """What is known of a judge from pairs (label, verdict), where `positive` is what it looks for."""
    pairs = [(label in positive, verdict in positive) for label, verdict in said]
    there = [verdict for label, verdict in pairs if label]
    absent = [verdict for label, verdict in pairs if not label]
    return Known(sum(there), len(there), len(absent) - sum(absent), len(absent))


def _line(path: Path, number: int, text: str) -> _Line:
    try:
        return TypeAdapter(_Line).validate_python(json.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{path}: line {number}: {f'`{key}`: ' if key else ''}{first['msg']}") from None
    except ValueError:
        raise UsageError(f"{path}: line {number} is no JSON") from None
