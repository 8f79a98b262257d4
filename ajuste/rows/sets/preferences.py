"""A set of comparisons of responses, or of rated texts of which comparisons are formed.

    kind: preferences
    prompt: Write a review.                 # what all texts of layout `ratings` answer
    licence: ...
    files:                                  # path, format and source as everywhere; optional are
    - layout: pairs                         # one of ajuste/rows/layouts/preferences.py
      columns: {chosen: better}             # the layout's own name -> the name in the file
      name: helpdesk                        # the source of its rows; else the file's name
      header: [id, mean, text]              # of a .tsv without a header line, its lines cut at tabs alone
      raters: raw.txt                       # of layout `ratings`: a file of layout `raters`, with id and ratings
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from ajuste.rows.layouts.preferences import LAYOUTS, columns_known
from ajuste.rows.sets import base
from ajuste.rows.sets.base import FileName, Format, Name, Part

KIND = "preferences"


class PreferenceFile(Part):
    """One file of a set of preferences."""

    path: FileName
    format: Format
    layout: Literal["pairs", "transcripts", "conversational", "sharegpt", "rankings", "ratings", "raters"]
    columns: dict[str, Name] = Field({}, description="The layout's own name -> the column's name in the file.")
    header: list[Name] | None = Field(None, description="Columns of a tsv without a header, lines cut at tabs alone.")
    raters: FileName | None = Field(None, description="Of layout `ratings`: the file that holds `id` and `ratings`.")
    name: Name | None = Field(None, description="The source of its rows; else the file's name.")
    source: Name

    @model_validator(mode="after")
    def _fits_layout(self) -> "PreferenceFile":
        if self.header and self.format != "tsv":
            raise ValueError("`header` belongs to format tsv")
        if self.raters and self.layout != "ratings":
            raise ValueError("`raters` belongs to layout `ratings`")
        known = columns_known(self.layout)
        wrong = sorted(self.columns.keys() - set(known))
        if wrong:
            raise ValueError(f"columns: layout {self.layout} has no `{wrong[0]}`; it has {', '.join(known)}")
        return self

    def needed(self) -> list[str]:
        """The columns that the file must have: what its layout needs, and what `columns` names."""
        own = ("id", "text") if self.raters else LAYOUTS[self.layout][0]
        return list(dict.fromkeys([*(self.columns.get(key, key) for key in own), *self.columns.values()]))


class PreferenceSet(base.Set):
    """A folder of data/ with comparisons of responses, or with rated texts of which they are formed."""

    kind: Literal["preferences"]
    prompt: Name | None = Field(None, description="What all texts of layout `ratings` answer.")
    licence: Name
    files: list[PreferenceFile] = Field(min_length=1)

    @model_validator(mode="after")
    def _complete(self) -> "PreferenceSet":
        layouts = {file.path: file.layout for file in self.files}
        for file in self.files:
            if file.layout == "ratings" and not self.prompt:
                raise ValueError("layout `ratings` needs `prompt`: what its texts answer")
            if file.raters and layouts.get(file.raters) != "raters":
                raise ValueError(f"`raters` of {file.path} names {file.raters}, and that is no file of layout `raters`")
        if set(layouts.values()) == {"raters"}:
            raise ValueError("files of layout `raters` alone hold no texts")
        return self


def read_set(folder: Path) -> PreferenceSet:
    """The set.yaml of a folder. Raises DataError, also for a set of another kind."""
    return base.read_set(folder, KIND, PreferenceSet)
