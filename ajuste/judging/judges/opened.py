"""A judge by its entry in a study's params: a folder of this machine, or an address.

    kind: letters     folder, principles                   a decoder that is asked in words
    kind: endpoint    url, model, principles               the same behind an OpenAI-compatible address
    kind: gold        folder                               a classifier with a label `positive`
    kind: reward      folder                               a merged reward model
"""

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator

from ajuste.core.errors import UsageError
from ajuste.core.params import Compute, Config
from ajuste.judging.judges.constitution import Language, read
from ajuste.judging.judges.endpoint import Endpoint
from ajuste.judging.judges.local import Gold, Letters, Reward
from ajuste.judging.judges.opinions import Judge
from ajuste.judging.judges.questions import Questions

WORDS = ("letters", "endpoint")
NEEDS = {"letters": {"folder", "principles"}, "endpoint": {"url", "model", "principles"}, "gold": {"folder"},
         "reward": {"folder"}}  # fmt: skip


class JudgeConfig(Config):
    """One entry of `judges`."""

    kind: Literal["letters", "endpoint", "gold", "reward"] = Field(description="Who judges.")
    folder: str | None = Field(default=None, description="The model's folder.")
    url: str | None = Field(default=None, description="Of an endpoint, up to /v1.")
    model: str | None = Field(default=None, description="The endpoint's name for its model.")
    principles: list[str] | None = Field(default=None, description="Of the constitution; each pair gets one of them.")

    @model_validator(mode="after")
    def _whole(self) -> "JudgeConfig":
        given = {name for name in ("folder", "url", "model", "principles") if getattr(self, name)}
        if given != NEEDS[self.kind]:
            raise ValueError(f"kind {self.kind} has {', '.join(sorted(NEEDS[self.kind]))}, and nothing else")
        return self


class WordsConfig(Config):
    """What judges of words and the policy's own critic share."""

    constitution: str = Field(description="The file of the principles.")
    language: Language = Field(description="en | es: of its texts.")


def judge_of(config: JudgeConfig, words: WordsConfig, dtype: str, compute: Compute) -> Judge:
    """The judge, ready to compare. Raises UsageError for a folder, an address or a principle that there is not."""
    device, numbers = compute.torch_device(), getattr(torch, dtype)
    try:
        if config.kind == "gold":
            return Gold(Path(config.folder), device)
        if config.kind == "reward":
            return Reward(Path(config.folder), numbers, device)
        known = read(Path(words.constitution))
        for name in config.principles:
            known.principle(words.language, name)
        questions = Questions(known, words.language, config.principles, compute.seed)
        if config.kind == "endpoint":
            return Endpoint(config.url, config.model, questions)
        return Letters(Path(config.folder), questions, numbers, device)
    except ValueError as error:
        raise UsageError(f"judge: {error}") from None
