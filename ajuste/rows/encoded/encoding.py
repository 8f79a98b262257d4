"""What encoding any kind of set shares: its inputs, the choice of rows, encoding.json."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from pydantic import Field

from ajuste.core.errors import UsageError
from ajuste.core.figures import write_json
from ajuste.core.params import Config
from ajuste.rows.parquet import GROUP_ROWS, read_batches
from ajuste.rows.split import SPLITS

PERCENTILES = (50, 90, 95, 99, 100)


class RowLimits(Config):
    """How many rows of each split are taken; null: all."""

    train: int | None = Field(ge=1)
    validation: int | None = Field(ge=1)
    test: int | None = Field(ge=1)


def inputs_of(validated: Path) -> dict[str, Path]:
    """The validated rows by split. Raises UsageError if one is missing."""
    paths = {split: validated / f"{split}.parquet" for split in SPLITS}
    for path in paths.values():
        if not path.is_file():
            raise UsageError(f"{path} is missing: run `dvc repro validate_{validated.name}`")
    return paths


def sources_in(paths: Iterable[Path]) -> set[str]:
    """Every source of the rows in some files."""
    return {
        source
        for path in paths
        for batch in read_batches(path, GROUP_ROWS, ["source"])
        for source in batch["source"].unique().to_pylist()
    }


def emptied(out: Path) -> Path:
    """The folder, made anew."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    return out


def write_encoding(out: Path, validated: Path, max_tokens: int, splits: dict[str, dict]) -> dict:
    """Write encoding.json, with the set's name beside what each split came to, and return its content."""
    name = json.loads((validated / "validation.json").read_text(encoding="utf-8"))["set"]
    report = {"set": name, "max_tokens": max_tokens, "splits": splits}
    write_json(out / "encoding.json", report, indent=2, ensure_ascii=False)
    return report


def last_of_lowest(row_ids: np.ndarray, rows: int) -> str:
    """The highest among the `rows` lowest of the ids (uint64), as row ids are written; rows is 1 to all of them."""
    return f"{int(np.partition(row_ids, rows - 1)[rows - 1]):016x}"


def as_numbers(row_ids: Iterable[str]) -> np.ndarray:
    """Row ids, 16 hex digits, as uint64: eight bytes each."""
    return np.array([int(row_id, 16) for row_id in row_ids], np.uint64)


def percentiles(lengths: np.ndarray, counts: np.ndarray) -> dict[str, int]:
    """The shortest length that a share of the rows does not exceed; `lengths` ascending, `counts` rows of each."""
    total, reached = counts.sum(), counts.cumsum()
    return {str(p): int(lengths[np.searchsorted(reached, p / 100 * total)]) for p in PERCENTILES}
