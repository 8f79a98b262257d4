"""What the reference model says of the encoded comparisons: log pi_ref(y | x) of each response, computed once.

log_probs.parquet has split, row_id and log_probs (list of float32, in the order of the comparison's responses);
reference.json names the model (`base`), its arithmetic (`dtype`) and the set. Written by stage `reference`, read by
whatever learns from preferences beside a reference.
"""

import json
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from torch.utils.data import Dataset

from ajuste.core.errors import UsageError
from ajuste.core.figures import write_json
from ajuste.rows.encoded.comparisons import Comparison, Comparisons

TABLE, CARD = "log_probs.parquet", "reference.json"
SCHEMA = pa.schema([("split", pa.string()), ("row_id", pa.string()), ("log_probs", pa.list_(pa.float32()))])


class Known(NamedTuple):
    """A comparison, and what the reference says of its responses."""

    comparison: Comparison
    log_probs: list[float]


class KnownComparisons(Dataset):
    """The comparisons of a split with the reference's word on them, by row id."""

    def __init__(self, comparisons: Comparisons, log_probs: list[list[float]]) -> None:
        self.comparisons = comparisons
        self.found = [Known(*pair) for pair in zip(comparisons, log_probs, strict=True)]

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, i: int) -> Known:
        return self.found[i]


def write_reference(folder: Path, found: dict[str, tuple[Comparisons, list[list[float]]]], card: dict) -> None:
    """Write both files. found: split -> its comparisons and the log-probabilities of each one's responses."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"split": split, "row_id": one.row_id, "log_probs": values}
        for split, (comparisons, log_probs) in found.items()
        for one, values in zip(comparisons, log_probs, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / TABLE)
    write_json(folder / CARD, card, sort_keys=True)


def read_card(folder: Path) -> dict:
    """reference.json. Raises UsageError when it is missing or is none."""
    try:
        return json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UsageError(f"{folder / CARD} is missing or no JSON: run stage `reference`") from None


def read_reference(folder: Path, split: str, comparisons: Comparisons) -> KnownComparisons:
    """A split's comparisons with the reference's log-probabilities. Raises UsageError if the table is missing or is of
    other comparisons."""
    path = folder / TABLE
    if not path.is_file():
        raise UsageError(f"{path} is missing: run stage `reference`")
    rows = pq.read_table(path, filters=[("split", "=", split)]).to_pylist()
    found = {row["row_id"]: row["log_probs"] for row in rows}
    for one in comparisons:
        if len(found.get(one.row_id, [])) != len(one.rows):
            raise UsageError(f"{path} is of other comparisons, row {one.row_id} is none of them: run `reference` again")
    return KnownComparisons(comparisons, [found[one.row_id] for one in comparisons])
