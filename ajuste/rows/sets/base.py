"""set.yaml: what a folder of data/ holds, how its files are read, and where they came from; what all kinds share.

    kind: classification | instructions | preferences | control | words | questions     a file of this room each
    licence: ...
    files:                                  # beside set.yaml, unchanged
    - path: mine.csv
      format: csv                           # csv | tsv | json | jsonl | parquet
      source: path:mine.csv                 # package:... | sdist:... | hub:... | path:<file name>

What a kind adds stands in its own file, and a stage imports that of its kind alone. `ajuste data` works with every
kind: ajuste/cli/data/kinds.py.
"""

from pathlib import Path
from typing import Annotated, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, model_validator

from ajuste.core.errors import DataError

Name = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
FileName = Annotated[str, StringConstraints(pattern=r"^[^/\\]+$")]
Format = Literal["csv", "tsv", "json", "jsonl", "parquet"]


class Part(BaseModel):
    """A mapping of set.yaml: no unknown key, and a number where text is wanted is that text."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


class Set(Part):
    """A folder of data/; each kind has its own `kind`, `licence` and `files`."""

    @model_validator(mode="after")
    def _unique(self) -> "Set":
        names = {"label": getattr(self, "labels", []), "file": [file.path for file in self.files]}
        for what, values in names.items():
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"{what} `{twice[0]}` is named twice")
        return self


S = TypeVar("S", bound=Set)


def kind_of(values: object) -> str | None:
    """The kind that a parsed set.yaml names, if it is a mapping that names one."""
    return values.get("kind") if isinstance(values, dict) else None


def read_values(folder: Path) -> object:
    """The set.yaml of a folder, parsed. Raises DataError that names the file and what is wrong."""
    path = folder / "set.yaml"
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = sorted(other.parent.name for other in folder.parent.glob("*/set.yaml"))
        raise DataError(
            f"{path} is missing: there is no set `{folder.name}`; sets are {', '.join(known) or 'none'}: "
            f"`ajuste data add {folder.name} FILE` makes it, `ajuste data pull` brings what data.dvc names"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from None


def read_set(folder: Path, kind: str, model: type[S]) -> S:
    """The set.yaml of a folder as a set of one kind. Raises DataError that names the file, the key and what is
    wrong; a set of another kind is refused."""
    path, values = folder / "set.yaml", read_values(folder)
    found = kind_of(values)
    if isinstance(found, str) and found != kind:
        known = [other for other in sorted(folder.parent.glob("*/set.yaml")) if f"kind: {kind}" in other.read_text()]
        raise DataError(
            f"{path}: a set of kind {found}, and {kind} is needed here: "
            f"such sets are {', '.join(other.parent.name for other in known) or 'none'}"
        )
    return check_set(values, str(path), model)


def check_set(values: object, where: str, model: type[S]) -> S:
    """A parsed set.yaml as a set of one kind; the first fault is a DataError that names its key."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise DataError(f"{where}: {f'`{key}`: ' if key else ''}{message}") from None


def dump_set(data_set: Set) -> str:
    """The text of set.yaml: same set, same bytes."""
    values = data_set.model_dump(mode="json", exclude_none=True)
    for file in values["files"]:
        if not file.get("columns", True):
            del file["columns"]
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)
