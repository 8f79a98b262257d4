"""set.yaml: what a folder of data/ holds, how its files are read, and where they came from.

    kind: classification
    labels: [negative, positive]            # class names in id order
    licence: ...
    files:                                  # beside set.yaml, unchanged
    - path: mine.csv
      format: csv                           # csv | tsv | json | jsonl | parquet
      columns: {text: review, label: sentiment, source: site, file: name}    # source and file are optional
      label_names: {'0': negative, '1': positive}    # optional: value in the file -> class name
      source: path:mine.csv                 # package:... | hub:... | path:<file name>

Private to the tasks and the command line.
"""

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from tasks._params import DataError

Name = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
Format = Literal["csv", "tsv", "json", "jsonl", "parquet"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


class Columns(_Part):
    """Which column of the file holds what."""

    text: Name
    label: Name
    source: Name | None = Field(None, description="Where a row comes from, for slices; else the file's name.")
    file: Name | None = Field(None, description="The file that a row was packed from, for its location.")

    def names(self) -> list[str]:
        """The columns that the file must have, each once."""
        return list(dict.fromkeys(name for name in (self.text, self.label, self.source, self.file) if name))


class SourceFile(_Part):
    """One file of a set."""

    path: Annotated[str, StringConstraints(pattern=r"^[^/\\]+$")] = Field(description="Its name beside set.yaml.")
    format: Format
    columns: Columns
    label_names: dict[str, Name] | None = Field(None, description="Value in the file -> class name.")
    source: Name = Field(description="package:..., hub:... or path:<file name>.")


class DataSet(_Part):
    """A folder of data/."""

    kind: Literal["classification"]
    labels: list[Name] = Field(min_length=2, description="Class names in id order.")
    licence: Name
    files: list[SourceFile] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique(self) -> "DataSet":
        for what, names in (("label", self.labels), ("file", [file.path for file in self.files])):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what} `{twice[0]}` is named twice")
        return self


def read_set(folder: Path) -> DataSet:
    """The set.yaml of a folder. Raises DataError that names the file, the key and what is wrong."""
    path = folder / "set.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = sorted(other.parent.name for other in folder.parent.glob("*/set.yaml"))
        raise DataError(
            f"{path} is missing: there is no set `{folder.name}`; sets are {', '.join(known) or 'none'}: "
            f"`ajuste data add {folder.name} FILE` makes it, `ajuste data pull` brings what data.dvc names"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from None
    return check_set(values, str(path))


def check_set(values: object, where: str) -> DataSet:
    """A parsed set.yaml as a DataSet; the first fault is a DataError that names its key."""
    try:
        return DataSet.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{where}: {f'`{key}`: ' if key else ''}{first['msg']}") from None


def dump_set(data_set: DataSet) -> str:
    """The text of set.yaml: same set, same bytes."""
    values = data_set.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)
