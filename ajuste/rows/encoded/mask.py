"""Encoded conversations as text again, with what is trained told apart: for `ajuste show-mask` and for the report.

Reads artifacts/encoded/<set>/<split>.parquet and the base's tokenizer.json; nothing is computed anew, so what is shown
is what trains.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import groupby, islice
from pathlib import Path

from ajuste.core.errors import UsageError
from ajuste.rows.parquet import read_batches
from ajuste.rows.split import SPLITS

NOT_TRAINED = -100
BATCH_ROWS = 64
Span = tuple[str, bool]  # a text, and whether its tokens are trained


@dataclass(frozen=True)
class Masked:
    """One encoded row: `spans` laid end to end are its text, control tokens written out."""

    row_id: str
    location: str
    source: str
    tokens: int
    trained: int
    length: int  # before any cut
    spans: list[Span]

    def caption(self) -> str:
        cut = f", {self.length - self.tokens} more were cut" if self.length > self.tokens else ""
        return f"{self.row_id}  {self.location}  {self.trained} of {self.tokens} tokens are trained{cut}"


def read_masked(encoded: Path, base: Path, split: str = "train", rows: int = 5) -> list[Masked]:
    """The first `rows` rows of a split. Raises UsageError: no such split, or what is not encoded yet."""
    from tokenizers import Tokenizer

    if split not in SPLITS:
        raise UsageError(f"there is no split `{split}`: splits are {', '.join(SPLITS)}")
    path = encoded / f"{split}.parquet"
    for needed, stage in ((path, f"encode_{encoded.name}"), (base / "tokenizer.json", "base_decoder")):
        if not needed.is_file():
            raise UsageError(f"{needed} is missing: run `dvc repro {stage}`")
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    return [_masked(row, tokenizer) for row in islice(_rows(path), rows)]


def spans_of(tokenizer, ids: list[int], labels: list[int]) -> list[Span]:
    """Neighbouring tokens that are trained, or are not, as one text each. `tokenizer`: of the library tokenizers."""
    groups = groupby(zip(ids, labels, strict=True), key=lambda pair: pair[1] != NOT_TRAINED)
    return [
        (tokenizer.decode([token for token, _ in pairs], skip_special_tokens=False), trained)
        for trained, pairs in groups
    ]


def as_html(spans: list[Span]) -> str:
    """The text in <span class="trained"> and <span class="prompt">, escaped; it wants `white-space: pre-wrap`."""
    return "".join(
        f'<span class="{"trained" if trained else "prompt"}">{escape(text)}</span>' for text, trained in spans
    )


def _rows(path: Path) -> Iterator[dict]:
    import pyarrow.parquet as pq

    names = ["row_id", "location", "source", "input_ids", "labels", "length"]
    if "labels" not in pq.read_schema(path).names:
        raise UsageError(f"{path} holds no conversations: show-mask is for sets of instructions")
    for batch in read_batches(path, BATCH_ROWS, names):
        yield from batch.to_pylist()


def _masked(row: dict, tokenizer) -> Masked:
    ids, labels = row["input_ids"], row["labels"]
    return Masked(
        row_id=row["row_id"],
        location=row["location"],
        source=row["source"],
        tokens=len(ids),
        trained=len(labels) - labels.count(NOT_TRAINED),
        length=row["length"],
        spans=spans_of(tokenizer, ids, labels),
    )
