"""A control set: it judges models before and after training, and no stage trains on it.

    kind: control
    licence: ...
    files:                                  # path, format and source as everywhere
    - layout: boolq                         # one of ajuste/rows/control.py
      name: boolq                           # of the control set, in tables
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from ajuste.rows.sets import base
from ajuste.rows.sets.base import FileName, Format, Name, Part

KIND = "control"


class ControlFile(Part):
    """One file of a control set."""

    path: FileName
    format: Format
    layout: Literal["text", "boolq", "piqa"]
    name: Name = Field(description="Of the control set, in tables.")
    source: Name


class ControlSet(base.Set):
    """A folder of data/ that no stage trains on."""

    kind: Literal["control"]
    licence: Name
    files: list[ControlFile] = Field(min_length=1)


def read_set(folder: Path) -> ControlSet:
    """The set.yaml of a folder. Raises DataError, also for a set of another kind."""
    return base.read_set(folder, KIND, ControlSet)
