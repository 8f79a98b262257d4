"""The constitution: principles in words, and what a model is asked by them (Bai et al. 2022, Constitutional AI).

    sources/constitution/constitution.yaml
        frames:     {en: {compare: "... {principle} ... {prompt} ... {first} ... {second} ..."}, es: ...}
        principles: {helpful: {en: {compare, critique, revise}, es: ...}, honest: ..., harmless: ...}

    principle of a row = the names in their order, at sha256(seed, row id) modulo their number

so a row keeps its principle whatever other rows there are. Unknown keys are errors that name file and key. The file is
a dep of the stages that read it, so DVC hashes it as it hashes every source.

    constitution = read(Path("sources/constitution/constitution.yaml"))
    constitution.question("en", "honest", "What is a lake?", ("Water.", "A star."))
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from ajuste.core.errors import UsageError
from ajuste.core.params import read_yaml

Language = Literal["en", "es"]
Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
PLACES = ("principle", "prompt", "first", "second")
PLACE = re.compile(r"\{(" + "|".join(PLACES) + r")\}")
T = TypeVar("T")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Both(_Part, Generic[T]):
    """The same in English and in Spanish."""

    en: T
    es: T


class Frame(_Part):
    """What stands around a principle and two answers."""

    compare: Text

    @field_validator("compare")
    @classmethod
    def _places(cls, text: str) -> str:
        for place in PLACES:
            if text.count(f"{{{place}}}") != 1:
                raise ValueError(f"the text must have {{{place}}} once")
        return text


class Principle(_Part):
    """compare: what the better of two answers does. critique, revise: what a model is asked of its own answer."""

    compare: Text
    critique: Text
    revise: Text


class Constitution(_Part):
    """All of it, by name of the principle and language."""

    frames: Both[Frame]
    principles: dict[Text, Both[Principle]] = Field(min_length=1)

    def principle(self, language: Language, name: str) -> Principle:
        """A principle by its name. Raises UsageError that says which there are."""
        if name not in self.principles:
            raise UsageError(f"the constitution has no principle `{name}`: it has {', '.join(self.principles)}")
        return getattr(self.principles[name], language)

    def question(self, language: Language, name: str, prompt: str, answers: tuple[str, str]) -> str:
        """What a judge is asked of two answers, of which the first is A. Braces inside the texts stay as they are."""
        said = dict(zip(PLACES, (self.principle(language, name).compare, prompt, *answers), strict=True))
        return PLACE.sub(lambda place: said[place[1]], getattr(self.frames, language).compare)


class Prompt(_Part):
    """A request that a model answers, criticises and revises."""

    id: Text
    language: Language
    prompt: Text


class Prompts(_Part):
    """Those of a file; ids are unique."""

    prompts: list[Prompt] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique(self) -> "Prompts":
        ids = [prompt.id for prompt in self.prompts]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            raise ValueError(f"prompt id `{twice[0]}` stands twice")
        return self


def read(path: Path) -> Constitution:
    """The constitution of a file. Raises UsageError that names the file and the key."""
    return _typed(Constitution, path, read_yaml(path))


def read_prompts(path: Path) -> list[Prompt]:
    """The requests of a file, in its order. Raises UsageError that names the file and the entry."""
    return _typed(Prompts, path, {"prompts": read_yaml(path)}).prompts


def drawn(names: Sequence[str], row_id: str, seed: int) -> str:
    """The principle of a row. Raises ValueError without a name."""
    if not names:
        raise ValueError("no principle is named")
    return names[int.from_bytes(hashlib.sha256(f"{seed}:{row_id}".encode()).digest()[:8], "big") % len(names)]


def _typed(kind: type[T], path: Path, values: object) -> T:
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        # a misspelt key is an unknown one and a missing one: the unknown one says more
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        key = ".".join(str(part) for part in first["loc"])
        wrong = "unknown key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{path}: {f'`{key}`: ' if key else ''}{wrong}") from None
