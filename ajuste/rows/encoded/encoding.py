"""What encoding any kind of set shares: its inputs, the choice of rows, what a split came to, encoding.json."""

import json
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
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


@dataclass
class Counts:
    """What one file came to."""

    lengths: Counter = field(default_factory=Counter)  # tokens before any cut -> rows
    sums: Counter = field(default_factory=Counter)  # what else is counted, by its name in the report
    dropped: Counter = field(default_factory=Counter)  # why -> rows
    first: str | None = None  # the first dropped row and why

    def drop(self, why: str, row: dict, words: str) -> None:
        self.dropped[why] += 1
        self.first = self.first or f"{row['location']}: {words}"

    def add(self, other: "Counts") -> None:
        """Count what another part of the same file came to, which stands behind this one."""
        for name in ("lengths", "sums", "dropped"):
            getattr(self, name).update(getattr(other, name))
        self.first = self.first or other.first

    def report(self, sums: tuple[str, ...], dropped: tuple[str, ...] = (), rows: int | None = None,
               sources: Counter | None = None) -> dict:  # fmt: skip
        """A split's part of encoding.json. rows: where they are not those whose lengths were counted."""
        lengths = np.array(sorted(self.lengths))
        counts = np.array([self.lengths[length] for length in lengths])
        return {
            "rows": int(counts.sum()) if rows is None else rows,
            **({} if sources is None else {"sources": dict(sorted(sources.items()))}),
            "percentiles": percentiles(lengths, counts),
            **{name: self.sums[name] for name in sums},
            **({"rows_dropped": {why: self.dropped[why] for why in dropped}} if dropped else {}),
        }


def count_cut(counts: Counts, lengths: list[int], max_tokens: int) -> None:
    """Count what rows of these lengths come to that lose what is over `max_tokens`."""
    over = [length - max_tokens for length in lengths if length > max_tokens]
    counts.sums.update(tokens=sum(lengths) - sum(over), rows_truncated=len(over), tokens_cut=sum(over))


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


def unknown_warnings(splits: dict[str, dict], most: float) -> list[str]:
    """What is said of texts that the base does not know the words of: nothing while the share is at most `most`."""
    unknown, tokens = (sum(split[name] for split in splits.values()) for name in ("unknown_tokens", "tokens"))
    if unknown <= most * tokens:
        return []
    return [f"{unknown / tokens:.0%} of the tokens are unknown to the base ({unknown:,} of {tokens:,}): what they say "
            "is lost. Name a base that knows these texts' language: base.encoder.source in params.yaml"]  # fmt: skip


def write_encoding(out: Path, validated: Path, max_tokens: int, splits: dict[str, dict],
                   warnings: list[str] | None = None) -> dict:  # fmt: skip
    """Write encoding.json, with the set's name beside what each split came to and warnings if there are any, and
    return its content."""
    name = json.loads((validated / "validation.json").read_text(encoding="utf-8"))["set"]
    report = {"set": name, "max_tokens": max_tokens, "splits": splits} | ({"warnings": warnings} if warnings else {})
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
