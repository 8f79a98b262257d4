"""Encoded conversations as training reads them: pairs (token ids, labels).

A split is <encoded>/<split>.parquet with row_id, input_ids and labels (lists of int32 of the same length, -100 where a
token is read and not learnt) and more columns. Nothing is cut here: a row that the model cannot read is an error.
"""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from ajuste.core.errors import DataError, UsageError
from ajuste.learning.losses.cross_entropy import IGNORED
from ajuste.rows.encoded.labelled import Rows, lists


def read_conversations(encoded: Path, split: str) -> Rows:
    """The rows of a split: `rows[i]` is (ids, labels).

    Raises UsageError if it is missing or holds no conversations, DataError if no row has a token to learn.
    """
    path = encoded / f"{split}.parquet"
    if not path.is_file():
        raise UsageError(f"{path} is missing: run stage `encode_instructions`")
    table = pq.read_table(path)
    missing = [name for name in ("input_ids", "labels", "prompt_tokens") if name not in table.column_names]
    if missing:
        raise UsageError(f"{path} has no column `{missing[0]}`: it holds no encoded instructions")
    if not table.num_rows:
        raise DataError(f"{path} has no rows: add data or take more sources")
    labels = lists(table["labels"])
    if not any((row[1:] != IGNORED).any() for row in labels):
        raise DataError(f"{path} has no token to learn: every response was cut away; raise the encoding's max_tokens")
    return Rows(lists(table["input_ids"]), labels, table.drop_columns(["input_ids", "labels"]))


def check_fits(splits: dict[str, Rows], encoded: Path, config, virtual_tokens: int) -> None:
    """Raise ValueError for a row that the model cannot read: too long for its positions, or of another vocabulary.

    config: the model's, with max_position_embeddings and vocab_size. virtual_tokens: put before each row.
    """
    positions = getattr(config, "max_position_embeddings", None)
    for split, rows in splits.items():
        path, lengths = encoded / f"{split}.parquet", rows.lengths()
        longest = int(np.argmax(lengths))
        if positions and lengths[longest] + virtual_tokens > positions:
            more = f" and {virtual_tokens} virtual ones" if virtual_tokens else ""
            raise ValueError(
                f"{path}: row {_name(rows, longest)} has {lengths[longest]} tokens{more}, but the base has "
                f"{positions} positions: lower max_tokens of the encoding"
            )
        for i, ids in enumerate(rows.ids):
            if len(ids) and not 0 <= ids.min() <= ids.max() < config.vocab_size:
                raise ValueError(
                    f"{path}: row {_name(rows, i)} has token {ids.max()}, but the base knows {config.vocab_size}: "
                    "encode the set again with this base"
                )


def _name(rows: Rows, i: int) -> str:
    return str(rows.table["row_id"][i]) if "row_id" in rows.table.column_names else str(i)
