"""What the server filters, as policy.yaml says it: section `filters`, read by `ajuste serve` alone."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, model_validator

from ajuste.core.params import Config


class Action(Config):
    """What becomes of what is found; a kind that neither names is not looked for."""

    refuse: list[str] = Field(description="Kinds that end the request or the answer.")
    mask: list[str] = Field(description="Kinds that are replaced by <KIND>.")

    @model_validator(mode="after")
    def _one_action(self) -> "Action":
        if both := sorted(set(self.refuse) & set(self.mask)):
            raise ValueError(f"`{both[0]}` is refused and masked: keep one of them")
        return self

    def kinds(self) -> list[str]:
        return [*self.refuse, *self.mask]


class FilterConfig(Config):
    """Section `filters`."""

    input: Action = Field(description="Of every turn, or the prompt, that a model is asked with.")
    output: Action = Field(description="Of what a model writes.")
    regions: list[str] = Field(description="Countries whose telephone numbers are known without +.")
    phrases: str | None = Field(description="File that lists the phrases of kind `phrase`, one a line.")

    @model_validator(mode="after")
    def _phrases_named(self) -> "FilterConfig":
        if "phrase" in self.kinds() and not self.phrases:
            raise ValueError("kind `phrase` needs `phrases`: a file that lists them, one a line")
        return self

    def kinds(self) -> Sequence[str]:
        """All kinds that are looked for, each once."""
        return list(dict.fromkeys([*self.input.kinds(), *self.output.kinds()]))

    def told(self) -> str:
        """In a line: what is refused and what is masked."""
        parts = [f"{where} {done} {', '.join(kinds)}"
                 for where, action in (("input", self.input), ("output", self.output))
                 for done, kinds in (("refuses", action.refuse), ("masks", action.mask)) if kinds]  # fmt: skip
        return "; ".join(parts)

    def phrase_list(self) -> list[str]:
        """The phrases, read from their file. Raises UsageError or DataError."""
        from ajuste.rows.filters.phrases import read_phrases

        return read_phrases(Path(self.phrases)) if "phrase" in self.kinds() else []
