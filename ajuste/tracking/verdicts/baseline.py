"""What the texts of today are compared with: rows of the data that a served version was trained on.

    classifier   text of each validation row, and what the version says of it
    assistant    first user turn of each validation conversation
    vocabulary   the words of all training rows
    features     of the frozen base encoder, mean-pooled, for both kinds: it does not move when the model is trained

Rows are those that the version's stage encoded, found in artifacts/ of the current folder, or of a worktree where a
deployed run made it; a version of other rows is refused, since nothing could be said about it. The models are run in
ajuste/judging/text_reader.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ajuste.core.errors import UsageError
from ajuste.core.home import home
from ajuste.judging.verdicts.drift import DriftConfig, Sample, vocabulary_of
from ajuste.tracking.registry.families import all as families
from ajuste.tracking.registry.families.family import Family
from ajuste.tracking.registry.scores import rows_digest
from ajuste.tracking.registry.version import Version

if TYPE_CHECKING:
    from ajuste.judging.text_reader import TextReader

LABELS = "classifier"  # the kind whose versions say a label


@dataclass
class Baseline:
    """The data of one served version. Properties are read or computed once, when they are first asked for."""

    version: Version
    config: DriftConfig
    family: Family

    @cached_property
    def rows(self) -> list[tuple[str, int]]:
        """(text, class id) of the reference, the lowest row ids; class id -1 for an assistant."""
        return [row[1:] for row in sorted(self._rows("validation"))[: self.config.reference_rows]]

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        return vocabulary_of(text for _, text, _ in self._rows("train"))

    @cached_property
    def sample(self) -> Sample:
        """The reference as the server would log it: its texts, what the version says of them, and their features."""
        texts = [text for text, _ in self.rows]
        return Sample(texts, self.predict(texts), self.embed(texts))

    def labelled(self) -> Sample:
        """The reference with its true labels. Raises UsageError for an assistant."""
        if self.family.kind != LABELS:
            raise UsageError(f"`{self.version.name}` knows no labels: leave the label column out")
        labels = [self._reader.labels[i] for _, i in self.rows]
        return Sample([text for text, _ in self.rows], labels, self.sample.features)

    def predict(self, texts: list[str]) -> list[str] | None:
        """The label that the version gives each text; None for an assistant."""
        return self._reader.predict(texts)

    def embed(self, texts: list[str]) -> np.ndarray:
        """Mean-pooled features of the frozen base [N, d]."""
        return self._reader.embed(texts)

    @cached_property
    def _reader(self) -> TextReader:
        from ajuste.judging.text_reader import TextReader

        served = self.version.path if self.family.kind == LABELS else None
        return TextReader(_artifacts(self.family) / "base" / "encoder", served)

    def _rows(self, split: str) -> Iterator[tuple[str, str, int]]:
        """(row id, text, class id) of the rows of a split that were encoded; validated rows are streamed."""
        import pyarrow.parquet as pq

        from ajuste.rows.parquet import read_batches

        encoded = self.family.encoded / f"{split}.parquet"
        chosen = set(pq.read_table(encoded, columns=["row_id"])["row_id"].to_pylist())
        columns = ["row_id", "text", "label"] if self.family.kind == LABELS else ["row_id", "messages"]
        validated = _artifacts(self.family) / "validated" / self.family.encoded.name / f"{split}.parquet"
        for batch in read_batches(validated, 1024, columns):
            for row in batch.to_pylist():
                if row["row_id"] in chosen:
                    yield row["row_id"], *_text(row)


def baseline(version: Version, config: DriftConfig) -> Baseline:
    """The data that a resolved version was trained beside. Raises UsageError, saying what to do, if it is not here."""
    family = families.of_users(version.name)
    if family is None or version.name.endswith("-adapter"):
        raise UsageError(f"`{version.name}` reads no texts of users: drift is of classifiers and of `assistant`")
    if version.tags.get("method") != family.method:
        wanted = None  # of another method, trained on prompts: its users ask as those of the first method do
    else:
        wanted = version.tags.get("validation_rows")
    whole = False
    for root in (Path(), *sorted((home() / ".prefect" / "worktrees").glob("*"))):
        here = replace(family, encoded=root / family.encoded)
        if all(path.exists() for path in _needed(here)):
            whole = True
            if not wanted or rows_digest(here, "validation") == wanted:
                return Baseline(version, config, here)
    if not whole:
        missing = next(path for path in _needed(family) if not path.exists())
        raise UsageError(f"{missing} is missing: `dvc checkout` brings what dvc.lock names, `ajuste run` makes it")
    raise UsageError(
        f"{version.name}/{version.version} was trained beside other rows than {family.encoded} holds: "
        "check out the revision that it was made from and `dvc checkout`, or serve a newer version"
    )


def _needed(family: Family) -> list[Path]:
    files = [f"{kind}/{family.encoded.name}/{split}.parquet" for kind in ("encoded", "validated")
             for split in ("train", "validation")]  # fmt: skip
    return [_artifacts(family) / file for file in (*files, "base/encoder/model.safetensors")]


def _artifacts(family: Family) -> Path:
    return family.encoded.parents[1]


def _text(row: dict) -> tuple[str, int]:
    if "text" in row:
        return row["text"], row["label"]
    return next(turn["content"] for turn in row["messages"] if turn["role"] == "user"), -1
