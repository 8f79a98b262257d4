"""A set of sentences whose words carry tags: named entities in the BIO scheme.

    kind: words
    labels: [O, B-PER, I-PER]               # tags in id order
    licence: ...
    files:                                  # path and source as everywhere
    - format: jsonl                         # json | jsonl | parquet: a list of words and one of tags a row
                                            # conll: a word a line, its tag in the last column, a blank line between
      columns: {words: tokens, tags: ner_tags}   # optional: our name -> the name in the file
      label_names: {'0': O, '1': B-PER}     # optional: value in the file -> tag
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from ajuste.rows.sets import base
from ajuste.rows.sets.base import FileName, Name, Part

KIND = "words"


class WordColumns(Part):
    """Which column of the file holds what."""

    words: Name = "words"
    tags: Name = "tags"


class WordFile(Part):
    """One file of a set of tagged words."""

    path: FileName
    format: Literal["json", "jsonl", "parquet", "conll"]
    columns: WordColumns = WordColumns()
    label_names: dict[str, Name] | None = Field(None, description="Value in the file -> tag.")
    source: Name

    @model_validator(mode="after")
    def _fits_format(self) -> "WordFile":
        if self.format == "conll" and self.columns != WordColumns():
            raise ValueError("`columns` belongs to json, jsonl and parquet: conll has no named columns")
        return self


class WordSet(base.Set):
    """A folder of data/ with tagged words."""

    kind: Literal["words"]
    labels: list[Name] = Field(min_length=2, description="Tags in id order: O, and B- and I- of each type.")
    licence: Name
    files: list[WordFile] = Field(min_length=1)

    @model_validator(mode="after")
    def _bio(self) -> "WordSet":
        wrong = [label for label in self.labels if label != "O" and label[:2] not in ("B-", "I-")]
        if wrong or "O" not in self.labels:
            what = f"`{wrong[0]}` is none" if wrong else "`O` is missing"
            raise ValueError(f"labels are BIO tags, O and B-TYPE and I-TYPE: {what}")
        return self


def read_set(folder: Path) -> WordSet:
    """The set.yaml of a folder. Raises DataError, also for a set of another kind."""
    return base.read_set(folder, KIND, WordSet)
