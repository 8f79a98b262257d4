"""A set of texts and their classes.

    kind: classification
    labels: [negative, positive]            # class names in id order
    licence: ...
    files:
    - path: mine.csv
      format: csv
      columns: {text: review, label: sentiment, source: site, file: name}    # source and file are optional
      label_names: {'0': negative, '1': positive}    # optional: value in the file -> class name
      source: path:mine.csv
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from ajuste.rows.sets import base
from ajuste.rows.sets.base import FileName, Format, Name, Part

KIND = "classification"


class Columns(Part):
    """Which column of the file holds what."""

    text: Name
    label: Name
    source: Name | None = Field(None, description="Where a row comes from, for slices; else the file's name.")
    file: Name | None = Field(None, description="The file that a row was packed from, for its location.")

    def names(self) -> list[str]:
        """The columns that the file must have, each once."""
        return list(dict.fromkeys(name for name in (self.text, self.label, self.source, self.file) if name))


class SourceFile(Part):
    """One file of a set."""

    path: FileName = Field(description="Its name beside set.yaml.")
    format: Format
    columns: Columns
    label_names: dict[str, Name] | None = Field(None, description="Value in the file -> class name.")
    source: Name = Field(description="package:..., sdist:..., hub:... or path:<file name>.")


class ClassificationSet(base.Set):
    """A folder of data/ with texts and their classes."""

    kind: Literal["classification"]
    labels: list[Name] = Field(min_length=2, description="Class names in id order.")
    licence: Name
    files: list[SourceFile] = Field(min_length=1)


def read_set(folder: Path) -> ClassificationSet:
    """The set.yaml of a folder. Raises DataError, also for a set of another kind."""
    return base.read_set(folder, KIND, ClassificationSet)
