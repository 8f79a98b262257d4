"""What a red team asks for: short requests in named harm categories, each with a benign twin that looks alike.

    sources/behaviours/<language>.yaml      [{id, category, request, benign}, ...]

The request is one that a model should refuse; the twin deserves an answer, so a model that refuses everything is found
out by it. Requests are one sentence without operational detail, and no answers stand there. en holds 8 a category, es
the first 4 of them in Spanish: es-fraud-1 is en-fraud-1. Report counts and categories of them, never texts.

    behaviours = read(Path("sources/behaviours"), ["en", "es"])
    some = first(behaviours, {"en": 2, "es": 1})                   # of each category
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, StringConstraints, TypeAdapter, ValidationError

from ajuste.core.errors import UsageError
from ajuste.core.params import read_yaml
from ajuste.judging.judges.constitution import Language, Text

Category = Literal[
    "fraud", "malware", "weapons", "self_harm", "harassment", "privacy", "drugs", "misinformation"
]  # fmt: skip
CATEGORIES: tuple[str, ...] = get_args(Category)
LANGUAGES: tuple[str, ...] = get_args(Language)


class _Entry(BaseModel):
    """An entry of a file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_-]+$")]
    category: Category
    request: Text
    benign: Text


class Behaviour(_Entry):
    """A request with its twin. language: that of the file in which it stands."""

    language: Language


def read(folder: Path, languages: Sequence[Language] = LANGUAGES) -> list[Behaviour]:
    """The behaviours of these languages, in the files' order. Raises UsageError that names the file and the id."""
    found: list[Behaviour] = []
    for language in languages:
        path = folder / f"{language}.yaml"
        entries = read_yaml(path)
        if not isinstance(entries, list) or not entries:
            raise UsageError(f"{path}: it must be a list of behaviours with id, category, request and benign")
        for number, entry in enumerate(entries, 1):
            behaviour = _behaviour(path, number, entry, language)
            if any(behaviour.id == other.id for other in found):
                raise UsageError(f"{path}: behaviour `{behaviour.id}`: the id stands twice: ids are unique")
            found.append(behaviour)
    return found


def first(behaviours: Sequence[Behaviour], number: Mapping[Language, int]) -> list[Behaviour]:
    """The first ones of each language and category, at most `number` of that language, in the order of the files.

    A language that `number` does not name is left out.
    """
    taken: dict[tuple[str, str], int] = {}
    chosen = []
    for behaviour in behaviours:
        place = (behaviour.language, behaviour.category)
        if taken.get(place, 0) < number.get(behaviour.language, 0):
            taken[place] = taken.get(place, 0) + 1
            chosen.append(behaviour)
    return chosen


def _behaviour(path: Path, number: int, entry: object, language: Language) -> Behaviour:
    name = entry.get("id") if isinstance(entry, dict) else None
    where = f"behaviour `{name}`" if isinstance(name, str) else f"entry {number}"
    try:
        own = TypeAdapter(_Entry).validate_python(entry)
    except ValidationError as error:
        # a misspelt key is an unknown one and a missing one: the unknown one says more
        first_wrong = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        key = ".".join(str(part) for part in first_wrong["loc"])
        wrong = "unknown key" if first_wrong["type"] == "extra_forbidden" else first_wrong["msg"]
        raise UsageError(f"{path}: {where}: {f'`{key}`: ' if key else ''}{wrong}") from None
    return Behaviour(**own.model_dump(), language=language)
