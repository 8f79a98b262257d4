"""Encoded rows as training and evaluation read them: token ids from Parquet, kept in flat arrays, padded per batch.

A classification split is <encoded>/<split>.parquet with row_id, input_ids (list of int32), label (int32), source,
length (tokens before truncation) and location. Token and span splits have other label columns (words.py and
questions.py beside this file).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ajuste.core.errors import DataError, UsageError
from ajuste.core.params import Compute
from ajuste.learning.batching import pad
from ajuste.learning.losses.cross_entropy import IGNORED

SPLITS = ("train", "validation", "test")
LABEL_COLUMNS = {"sequence": ("label",), "token": ("labels",), "span": ("start", "end")}


@dataclass
class Rows(Dataset):
    """One split: `ids[i]` are row i's token ids, `labels[i]` an int (sequence), a list (token) or a pair (span)."""

    ids: Sequence[np.ndarray]
    labels: Sequence
    table: pa.Table  # the other columns

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> tuple[np.ndarray, object]:
        return self.ids[i], self.labels[i]

    def lengths(self) -> list[int]:
        return [len(row) for row in self.ids]

    def flat_labels(self) -> Tensor:
        """All labels of the split as one int64 tensor."""
        return torch.as_tensor(np.concatenate([np.atleast_1d(label) for label in self.labels]), dtype=torch.int64)


def read_rows(encoded: Path, split: str, task: str) -> Rows:
    """The rows of a split. Raises UsageError if it is missing or of another task, DataError if it has no rows."""
    path = encoded / f"{split}.parquet"
    if not path.is_file():
        raise UsageError(f"{path} is missing: run the stage that encodes it")
    table = pq.read_table(path)
    missing = [name for name in ("input_ids", *LABEL_COLUMNS[task]) if name not in table.column_names]
    if missing:
        raise UsageError(f"{path} has no column `{missing[0]}`: it is not encoded for task `{task}`")
    if not table.num_rows:
        raise DataError(f"{path} has no rows: add data or take more sources")
    if task == "sequence":
        labels = table["label"].to_numpy()
    elif task == "token":
        labels = lists(table["labels"])
    else:
        labels = np.stack([table["start"].to_numpy(), table["end"].to_numpy()], axis=1)
    return Rows(lists(table["input_ids"]), labels, table.drop_columns(["input_ids"]))


def read_labels(encoded: Path) -> list[str]:
    """Label names in id order. Raises UsageError if labels.json is missing."""
    return _json(encoded / "labels.json")


def read_encoding(encoded: Path) -> dict:
    """encoding.json: max_tokens, set name and the length report. Raises UsageError if it is missing."""
    return _json(encoded / "encoding.json")


def autocast(compute: Compute) -> torch.autocast:
    """Matrix products in compute.dtype; nothing changes for float32."""
    return torch.autocast(compute.torch_device(), torch.bfloat16, enabled=compute.dtype == "bfloat16")


@dataclass
class Collate:
    """Pads (ids, label) pairs to the longest row: input_ids and attention_mask [B, T], labels [B], [B, T] or [B, 2]."""

    task: str
    pad_id: int

    def __call__(self, rows: list[tuple[np.ndarray, object]]) -> dict[str, Tensor]:
        input_ids, attention_mask = pad([ids for ids, _ in rows], self.pad_id)
        if self.task == "token":
            labels = torch.full_like(input_ids, IGNORED)
            for i, (_, row) in enumerate(rows):
                labels[i, : len(row)] = torch.as_tensor(row)
        else:
            labels = torch.as_tensor(np.array([label for _, label in rows]), dtype=torch.int64)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def lists(column: pa.ChunkedArray) -> list[np.ndarray]:
    """A list column as NumPy views into one flat array."""
    array = column.combine_chunks()
    flat, offsets = array.values.to_numpy().copy(), array.offsets.to_numpy()  # torch wants writable arrays
    return [flat[start:stop] for start, stop in zip(offsets[:-1], offsets[1:], strict=True)]


def _json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: run the stage that encodes it") from None
