"""Prompts to practise on whose answers a program can check: sources/rules/practice.yaml, texts of this project.

    asked     [{id, prompt: "... {topic} ...", rules: [...]}, ...]        rules: ajuste/judging/rules.py
    topics    {train: [...], validation: [...], test: [...]}              each prompt is asked about each topic

A split has its topics to itself, so what is asked in a test was never trained on, though things like it were. The
fixed prompts of sources/prompts, which every assistant is measured by, are not among them.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ajuste.core.errors import UsageError
from ajuste.core.params import read_yaml
from ajuste.judging.rules import Rule, Text

FILE = "practice.yaml"
PLACE = "{topic}"


class Practice(BaseModel):
    """A prompt and its rules. In `asked` it has the place {topic} once, in what `read` returns it is filled."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Text
    prompt: Text
    rules: list[Rule] = Field(min_length=1)
    topic: str = ""

    @property
    def kind(self) -> str:
        """The id of the prompt that it was filled from."""
        return self.id.removesuffix(f"-{self.topic}")


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    asked: list[Practice] = Field(min_length=1)
    topics: dict[str, list[Text]]

    @model_validator(mode="after")
    def _apart(self) -> "_File":
        if set(self.topics) != {"train", "validation", "test"} or not all(self.topics.values()):
            raise ValueError("topics has the lists train, validation and test, none of them empty")
        every = [topic.casefold() for topics in self.topics.values() for topic in topics]
        if twice := sorted({topic for topic in every if every.count(topic) > 1}):
            raise ValueError(f"topic `{twice[0]}` stands twice: a split has its topics to itself")
        ids = [one.id for one in self.asked]
        if twice := sorted({name for name in ids if ids.count(name) > 1}):
            raise ValueError(f"id `{twice[0]}` stands twice")
        for one in self.asked:
            if one.prompt.count(PLACE) != 1:
                raise ValueError(f"prompt `{one.id}` must have {PLACE} once")
        return self


def read(folder: Path, split: str) -> list[Practice]:
    """The prompts of a split, each about each of its topics, in the file's order. Raises UsageError that names the
    entry."""
    path = folder / FILE
    try:
        found = _File.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{path}: {f'`{key}`: ' if key else ''}{first['msg'].removeprefix('Value error, ')}") from None
    return [
        Practice(id=f"{one.id}-{topic}", prompt=one.prompt.replace(PLACE, topic), rules=one.rules, topic=topic)
        for topic in found.topics[split] for one in found.asked
    ]  # fmt: skip
