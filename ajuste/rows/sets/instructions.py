"""A set of instructions and their responses, or of general text.

    kind: instructions
    licence: ...
    files:                                  # path, format (txt too) and source as everywhere; layout; optional are
    - layout: alpaca                        # one of ajuste/rows/layouts/instructions.py
      columns: {instruction: question}      # the layout's own name -> the name in the file
      name: wiki                            # the source of its rows, for mixtures; else the file's name
      category: advice                      # of all its rows
      templates: [{prompt: 'Is this good? {text}', response: '{label}'}]   # layout `templates`, with label_names
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from ajuste.rows.layouts.instructions import FIELD, columns_known
from ajuste.rows.sets import base
from ajuste.rows.sets.base import FileName, Format, Name, Part

KIND = "instructions"
Layout = Literal["alpaca", "dolly", "flan", "prompt_completion", "question_answer", "messages", "sharegpt", "tagged",
                 "text", "templates"]  # fmt: skip


class Template(Part):
    """A phrasing of a labelled row; `{column}` stands for the row's value."""

    prompt: Name
    response: Name


class InstructionFile(Part):
    """One file of a set of instructions."""

    path: FileName
    format: Format | Literal["txt"]
    layout: Layout
    columns: dict[str, Name] = Field({}, description="The layout's own name -> the column's name in the file.")
    name: Name | None = Field(None, description="The source of its rows, for mixtures; else the file's name.")
    category: Name | None = Field(None, description="Of the rows that name none themselves.")
    templates: list[Template] | None = Field(None, min_length=1, description="Of layout `templates`.")
    label_names: dict[str, Name] | None = Field(None, description="Value of column `label` -> its name in templates.")
    source: Name

    @model_validator(mode="after")
    def _fits_layout(self) -> "InstructionFile":
        if (self.layout == "templates") != (self.templates is not None):
            raise ValueError("`templates` belongs to layout `templates`, which needs it")
        if self.label_names and self.layout != "templates":
            raise ValueError("`label_names` belongs to layout `templates`")
        if self.templates and not any(FIELD.search(template.prompt) for template in self.templates):
            raise ValueError("no template names a column of the row, such as {text}")
        if self.format == "txt" and self.layout not in ("text", "tagged"):
            raise ValueError(f"format txt has no columns, so its layout is text or tagged, not {self.layout}")
        known = columns_known(self.layout, self.phrasings())
        wrong = sorted(self.columns.keys() - set(known))
        if wrong:
            raise ValueError(f"columns: layout {self.layout} has no `{wrong[0]}`; it has {', '.join(known)}")
        return self

    def phrasings(self) -> list[dict]:
        """The templates as plain dictionaries."""
        return [template.model_dump() for template in self.templates or []]


class InstructionSet(base.Set):
    """A folder of data/ with instructions and their responses, or general text."""

    kind: Literal["instructions"]
    licence: Name
    files: list[InstructionFile] = Field(min_length=1)


def read_set(folder: Path) -> InstructionSet:
    """The set.yaml of a folder. Raises DataError, also for a set of another kind."""
    return base.read_set(folder, KIND, InstructionSet)
