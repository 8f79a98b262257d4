"""The fixed prompts of sources/prompts: what every assistant is asked, so that answers can be put side by side.

    open.yaml         [{id, prompt}, ...]                 answers for people to read
    verifiable.yaml   [{id, prompt, rules: [...]}, ...]   answers that a program can check (ajuste/judging/rules.py)
    reviews.yaml      {template: "... {labels} ... {text}"}    how the assistant is asked for a classifier's label

"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from ajuste.core.errors import UsageError
from ajuste.core.params import read_yaml
from ajuste.judging.rules import Rule, Text


class Prompt(BaseModel):
    """A question; `rules` is what can be checked of its answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Text
    prompt: Text
    rules: list[Rule] = []


class ReviewPrompt(BaseModel):
    """A template with the two places {labels} and {text}."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: Text

    @model_validator(mode="after")
    def _places(self) -> "ReviewPrompt":
        for place in ("{labels}", "{text}"):
            if self.template.count(place) != 1:
                raise ValueError(f"the template must have {place} once")
        return self

    def ask(self, labels: list[str], text: str) -> str:
        """The prompt for one text. Braces inside the text stay as they are."""
        before, after = self.template.replace("{labels}", " or ".join(labels)).split("{text}")
        return before + text + after


def read_prompts(folder: Path) -> list[Prompt]:
    """The open and the verifiable prompts, in the files' order. Raises UsageError that names the file and the entry."""
    prompts: list[Prompt] = []
    for name in ("open.yaml", "verifiable.yaml"):
        prompts += _typed(list[Prompt], folder / name)
    ids = [prompt.id for prompt in prompts]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise UsageError(f"{folder}: prompt id `{twice[0]}` stands twice")
    return prompts


def read_review_prompt(folder: Path) -> ReviewPrompt:
    """reviews.yaml. Raises UsageError that names the file."""
    return _typed(ReviewPrompt, folder / "reviews.yaml")


def _typed(kind: Any, path: Path) -> Any:
    try:
        return TypeAdapter(kind).validate_python(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{path}: {f'`{key}`: ' if key else ''}{first['msg'].removeprefix('Value error, ')}") from None
