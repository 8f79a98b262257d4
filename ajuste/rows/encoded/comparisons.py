"""Encoded comparisons as the reward stage reads them: for each, the rows prompt + response, the best response first.

A split is <encoded>/<split>.parquet with row_id, prompt_ids (list of int32), responses (list of such lists, each with
its end of turn), and margin, agreement, ratings and the human figures, null where people gave none. Nothing is cut
here: a row that the model cannot read is an error.
"""

from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ajuste.core.errors import DataError, UsageError

HUMANS = ("one_against_rest", "split_half")
COLUMNS = ("row_id", "prompt_ids", "responses", "margin", "agreement", "ratings", *HUMANS)


@dataclass(frozen=True)
class Comparison:
    """K responses to one prompt, the best first."""

    row_id: str
    rows: list[list[int]]  # prompt and response
    lengths: list[int]  # tokens of each response
    margin: float | None  # of a pair: difference of the mean human ratings
    agreement: float | None  # of a pair: chance that a rater of the better prefers it
    ratings: list[float] | None
    humans: dict[str, float | None]  # of a pair: how often people order it so, by each of HUMANS


class Comparisons(Dataset):
    """The comparisons of a split, by row id."""

    def __init__(self, found: list[Comparison]) -> None:
        self.found = found

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, i: int) -> Comparison:
        return self.found[i]

    def tokens(self) -> list[int]:
        """Tokens of each comparison's rows together."""
        return [sum(map(len, one.rows)) for one in self.found]

    def rows(self) -> list[list[int]]:
        """The rows of one comparison after the other."""
        return [row for one in self.found for row in one.rows]

    def sizes(self) -> Tensor:
        """Responses of each comparison: [N]."""
        return torch.tensor([len(one.rows) for one in self.found])


def read_comparisons(encoded: Path, split: str, config) -> Comparisons:
    """The comparisons of a split. config: of the model, with max_position_embeddings and vocab_size.

    Raises UsageError if the file is missing or is no set of preferences, DataError without a row, or for one that the
    model cannot read.
    """
    path = encoded / f"{split}.parquet"
    rows = _read(path, COLUMNS)
    found = []
    for row in rows:
        if len(row["responses"]) < 2 or not all(row["responses"]):
            raise DataError(f"{path}: row {row['row_id']} needs two responses or more, none of them empty")
        whole = [row["prompt_ids"] + response for response in row["responses"]]
        _check_fits(path, row["row_id"], whole, config)
        lengths = [len(response) for response in row["responses"]]
        found.append(
            Comparison(
                row["row_id"], whole, lengths, row["margin"], row["agreement"], row["ratings"],
                {name: row[name] for name in HUMANS},
            )
        )
    return Comparisons(found)


def read_prompts(encoded: Path, split: str, number: int, config) -> list[list[int]]:
    """Token ids of `number` prompts of a split for the policy, by row id; fewer are taken again from the first.

    Raises UsageError if the file is missing, DataError without a row, or for one that the model cannot read.
    """
    path = encoded / f"prompts_{split}.parquet"
    rows = _read(path, ("row_id", "prompt_ids"))
    for row in rows:
        _check_fits(path, row["row_id"], [row["prompt_ids"]], config)
    return [rows[i % len(rows)]["prompt_ids"] for i in range(number)]


def _read(path: Path, columns: tuple[str, ...]) -> list[dict]:
    if not path.is_file():
        raise UsageError(f"{path} is missing: run stage `encode_preferences`")
    missing = [name for name in columns if name not in pq.read_schema(path).names]
    if missing:
        raise UsageError(f"{path} has no column `{missing[0]}`: it holds no encoded preferences")
    table = pq.read_table(path, columns=list(columns))
    if not table.num_rows:
        raise DataError(f"{path} has no rows: add comparisons or lower what filters them")
    return table.sort_by("row_id").to_pylist()


def _check_fits(path: Path, row_id: str, rows: list[list[int]], config) -> None:
    positions = getattr(config, "max_position_embeddings", None)
    longest = max(map(len, rows))
    if positions and longest > positions:
        raise DataError(
            f"{path}: row {row_id} has {longest} tokens, but the base has {positions} positions: lower max_tokens of "
            "the encoding"
        )
    for row in rows:
        if not row or not 0 <= min(row) <= max(row) < config.vocab_size:
            raise DataError(
                f"{path}: row {row_id} holds no token or one that the base, which knows {config.vocab_size}, does not: "
                "encode the set again with this base"
            )
