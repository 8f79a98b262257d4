"""set.yaml: what a folder of data/ holds, how its files are read, and where they came from.

    kind: classification
    labels: [negative, positive]            # class names in id order
    licence: ...
    files:                                  # beside set.yaml, unchanged
    - path: mine.csv
      format: csv                           # csv | tsv | json | jsonl | parquet
      columns: {text: review, label: sentiment, source: site, file: name}    # source and file are optional
      label_names: {'0': negative, '1': positive}    # optional: value in the file -> class name
      source: path:mine.csv                 # package:... | sdist:... | hub:... | path:<file name>

    kind: instructions                      # a file of it: format (txt too), layout, and these, all optional:
      columns: {instruction: question}      # the layout's own name -> the name in the file
      name: wiki                            # the source of its rows, for mixtures; else the file's name
      category: advice                      # of all its rows
      templates: [{prompt: 'Is this good? {text}', response: '{label}'}]   # layout `templates`, with label_names

    kind: preferences                       # a file of it: format, layout (ajuste/rows/layouts/preferences.py),
      columns, name, and prompt: Write a review.               # of the set: what all texts of layout `ratings` answer
      header: [id, mean, text]              # of a .tsv without a header line, its lines cut at tabs alone
      raters: raw.txt                       # of layout `ratings`: a file of layout `raters`, with id and ratings

    kind: control                           # judges models, trains none. A file of it: format, layout, name

Private to the tasks and the command line.
"""

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, model_validator

from ajuste.core.errors import DataError
from ajuste.rows.layouts.instructions import FIELD, columns_known
from ajuste.rows.layouts.preferences import LAYOUTS as PREFERENCES
from ajuste.rows.layouts.preferences import columns_known as preference_columns

Name = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
FileName = Annotated[str, StringConstraints(pattern=r"^[^/\\]+$")]
Format = Literal["csv", "tsv", "json", "jsonl", "parquet"]
Layout = Literal["alpaca", "dolly", "flan", "prompt_completion", "messages", "sharegpt", "tagged", "text", "templates"]


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

    path: FileName = Field(description="Its name beside set.yaml.")
    format: Format
    columns: Columns
    label_names: dict[str, Name] | None = Field(None, description="Value in the file -> class name.")
    source: Name = Field(description="package:..., sdist:..., hub:... or path:<file name>.")


class _Set(_Part):
    @model_validator(mode="after")
    def _unique(self) -> "_Set":
        names = {"label": getattr(self, "labels", []), "file": [file.path for file in self.files]}
        for what, values in names.items():
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"{what} `{twice[0]}` is named twice")
        return self


class ClassificationSet(_Set):
    """A folder of data/ with texts and their classes."""

    kind: Literal["classification"]
    labels: list[Name] = Field(min_length=2, description="Class names in id order.")
    licence: Name
    files: list[SourceFile] = Field(min_length=1)


class Template(_Part):
    """A phrasing of a labelled row; `{column}` stands for the row's value."""

    prompt: Name
    response: Name


class InstructionFile(_Part):
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


class InstructionSet(_Set):
    """A folder of data/ with instructions and their responses, or general text."""

    kind: Literal["instructions"]
    licence: Name
    files: list[InstructionFile] = Field(min_length=1)


class PreferenceFile(_Part):
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
        known = preference_columns(self.layout)
        wrong = sorted(self.columns.keys() - set(known))
        if wrong:
            raise ValueError(f"columns: layout {self.layout} has no `{wrong[0]}`; it has {', '.join(known)}")
        return self

    def needed(self) -> list[str]:
        """The columns that the file must have: what its layout needs, and what `columns` names."""
        own = ("id", "text") if self.raters else PREFERENCES[self.layout][0]
        return list(dict.fromkeys([*(self.columns.get(key, key) for key in own), *self.columns.values()]))


class PreferenceSet(_Set):
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


class ControlFile(_Part):
    """One file of a control set: its rows judge models before and after training."""

    path: FileName
    format: Format
    layout: Literal["text", "boolq", "piqa"]
    name: Name = Field(description="Of the control set, in tables.")
    source: Name


class ControlSet(_Set):
    """A folder of data/ that no stage trains on."""

    kind: Literal["control"]
    licence: Name
    files: list[ControlFile] = Field(min_length=1)


DataSet = ClassificationSet | InstructionSet | PreferenceSet | ControlSet
_ANY_SET = TypeAdapter(Annotated[DataSet, Field(discriminator="kind")])


def read_set(folder: Path, kind: str | None = None) -> DataSet:
    """The set.yaml of a folder. Raises DataError that names the file, the key and what is wrong.

    kind: what the caller can use; a set of another kind is refused.
    """
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
    found = check_set(values, str(path))
    if kind and found.kind != kind:
        known = [other for other in sorted(folder.parent.glob("*/set.yaml")) if f"kind: {kind}" in other.read_text()]
        raise DataError(
            f"{path}: a set of kind {found.kind}, and {kind} is needed here: "
            f"such sets are {', '.join(other.parent.name for other in known) or 'none'}"
        )
    return found


def check_set(values: object, where: str) -> DataSet:
    """A parsed set.yaml as a DataSet; the first fault is a DataError that names its key."""
    try:
        return _ANY_SET.validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        part = [str(part) for part in first["loc"]]
        tag = values.get("kind") if isinstance(values, dict) else None
        key = ".".join(part[1:] if part[:1] == [tag] else part)  # the union names the kind first
        if first["type"].startswith("union_tag"):
            key, first = "kind", {"msg": "must be classification, instructions, preferences or control"}
        message = first["msg"].removeprefix("Value error, ")
        raise DataError(f"{where}: {f'`{key}`: ' if key else ''}{message}") from None


def dump_set(data_set: DataSet) -> str:
    """The text of set.yaml: same set, same bytes."""
    values = data_set.model_dump(mode="json", exclude_none=True)
    for file in values["files"]:
        if not file.get("columns", True):
            del file["columns"]
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)
