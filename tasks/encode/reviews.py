"""Stage `encode_reviews`: texts -> token ids, with a report on lengths and on what truncation costs.

    input_ids = [CLS] t_1 ... t_n [SEP], cut to max_tokens by dropping the last t (the special tokens stay)
    length    = n + special tokens, before the cut

The rows of a split: those of `sources` (empty: all), and of these the `rows` lowest row ids (null: all). Row ids are
hashes, so that is a random choice that does not move when rows are added. Order, labels and splits stay as validated.

    train|validation|test.parquet   row_id, input_ids, label, source, length, location
    labels.json                     class names in id order
    encoding.json                   per split: percentiles of length, rows truncated, tokens cut, unknown tokens; a
                                    warning where the unknown ones are more than `unknown_share` of all

Batches stream through; memory does not grow with the rows, but for eight bytes each of their ids.
Run it: `python -m tasks.encode.reviews`, or `dvc repro encode_reviews`.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from ajuste.core.errors import DataError, UsageError
from ajuste.core.launch.where import Spread, spread
from ajuste.core.params import Compute, Config
from ajuste.core.stage import start
from ajuste.rows.encoded.encoding import (
    Counts,
    RowLimits,
    as_numbers,
    count_cut,
    emptied,
    inputs_of,
    last_of_lowest,
    sources_in,
    unknown_warnings,
    write_encoding,
)
from ajuste.rows.parquet import ParquetRows, read_batches

ENCODED = pa.schema(
    [("row_id", pa.string()), ("input_ids", pa.list_(pa.int32())), ("label", pa.int32())]
    + [("source", pa.string()), ("length", pa.int32()), ("location", pa.string())]
)
CALL_ROWS = 256  # per call of the tokenizer, which holds a lot more than the ids of each text


class ReviewsConfig(Config):
    """Section `encode.reviews`."""

    max_tokens: int = Field(ge=8, description="Longer rows are cut to this many tokens, special ones included.")
    sources: list[str] = Field(description="Sources that are taken; empty: all.")
    rows: RowLimits = Field(description="Rows of each split, the lowest row ids; null: all.")
    unknown_share: float = Field(ge=0, le=1, description="Of tokens that the base does not know; above it a warning.")
    batch_rows: int = Field(gt=0, description="Rows in memory at a time; changes no result.")


def encode_reviews(
    config: ReviewsConfig, compute: Compute, validated: Path, base: Path, out: Path, spread: Spread = map
) -> dict:
    """Write the files named above into `out` and return encoding.json's content.

    spread: where batches are encoded (core/launch/where.py). Raises UsageError: an unknown source, a base without
    a tokenizer, more tokens than the base has positions, a missing input. DataError: a split without rows.
    """
    # read by the tokenizers when they first work in parallel; the order of their answers does not depend on it
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if compute.threads > 1 else "false"
    os.environ.setdefault("RAYON_NUM_THREADS", str(compute.threads))
    paths = inputs_of(validated)
    tokenizer = _Tokenizer(base, config.max_tokens)
    _check_sources(config.sources, sources_in(paths.values()))
    emptied(out)
    splits = {}
    for split, path in paths.items():
        counts = _encode_split(path, out / path.name, config, getattr(config.rows, split), tokenizer, spread)
        splits[split] = counts.report(("tokens", "rows_truncated", "tokens_cut", "unknown_tokens"))
    warnings = unknown_warnings(splits, config.unknown_share)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    shutil.copyfile(validated / "labels.json", out / "labels.json")
    return write_encoding(out, validated, config.max_tokens, splits, warnings)


class _Tokenizer:
    """The base's own tokenizer.json, with its settings for cutting and padding put aside."""

    def __init__(self, base: Path, max_tokens: int) -> None:
        from tokenizers import Tokenizer

        path = base / "tokenizer.json"
        if not path.is_file():
            raise UsageError(f"{path} is missing: run `dvc repro base_encoder`, or name a base with a fast tokenizer")
        settings = json.loads((base / "config.json").read_text(encoding="utf-8"))
        positions = settings.get("max_position_embeddings") or settings.get("n_positions")
        # RoBERTa's positions begin after the padding id
        usable = positions and positions - (settings["pad_token_id"] + 1 if settings["model_type"] in ROBERTAS else 0)
        if usable and max_tokens > usable:
            raise UsageError(f"params.yaml: max_tokens is {max_tokens}, but the base reads {usable} tokens at most")
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.special = self._tokenizer.num_special_tokens_to_add(False)
        self.room = max_tokens - self.special
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        self.unknown = self._tokenizer.token_to_id(unknown) if unknown else None

    def __call__(self, texts: list[str], counts: Counts) -> tuple[list[np.ndarray], list[int]]:
        """Token ids, cut, and lengths before the cut."""
        ids, lengths = [], []
        for begin in range(0, len(texts), CALL_ROWS):
            for encoding in self._tokenizer.encode_batch_fast(
                texts[begin : begin + CALL_ROWS], add_special_tokens=False
            ):
                lengths.append(len(encoding) + self.special)
                encoding.truncate(self.room)
                ids.append(np.array(self._tokenizer.post_process(encoding).ids, np.int32))
                if self.unknown is not None:
                    counts.sums["unknown_tokens"] += int((ids[-1] == self.unknown).sum())
        counts.lengths.update(lengths)
        count_cut(counts, lengths, self.room + self.special)
        return ids, lengths


ROBERTAS = {"roberta", "xlm-roberta", "camembert"}


def _check_sources(sources: list[str], known: set[str]) -> None:
    for source in sources:
        if source not in known:
            shown = ", ".join(sorted(known)[:20]) + (", ..." if len(known) > 20 else "")
            raise UsageError(f"params.yaml: encode has no source `{source}`: sources are {shown or 'none'}")


def _encode_split(
    path: Path, out: Path, config: ReviewsConfig, rows: int | None, tokenizer: _Tokenizer, spread: Spread
) -> Counts:
    last = _last_id(path, config, rows)
    counts = Counts()
    batches = _batches(path, config, ["row_id", "text", "label", "source", "location"])
    if last is not None:
        batches = (batch.filter(pc.less_equal(batch["row_id"], last)) for batch in batches)
    with ParquetRows(out, ENCODED) as sink:
        for columns, found in spread(partial(_encode_batch, tokenizer), batches):
            sink.write(columns)
            counts.add(found)
    if not sink.rows:
        where = f" of the sources {', '.join(config.sources)}" if config.sources else ""
        raise DataError(f"{path} has no rows{where}: add data, take more sources, or raise validate's `sample`")
    return counts


def _encode_batch(tokenizer: _Tokenizer, batch: pa.RecordBatch) -> tuple[dict, Counts]:
    counts = Counts()
    ids, lengths = tokenizer(batch["text"].to_pylist(), counts)
    columns = {name: batch[name] for name in ("row_id", "label", "source", "location")}
    return {**columns, "input_ids": ids, "length": lengths}, counts


def _last_id(path: Path, config: ReviewsConfig, rows: int | None) -> str | None:
    """The highest row id that is taken; None if all are."""
    if rows is None:
        return None
    parts = [as_numbers(batch["row_id"].to_pylist()) for batch in _batches(path, config, ["row_id", "source"])]
    ids = np.concatenate(parts) if parts else np.zeros(0, np.uint64)
    return last_of_lowest(ids, rows) if rows < len(ids) else None


def _batches(path: Path, config: ReviewsConfig, columns: list[str]) -> Iterator[pa.RecordBatch]:
    for batch in read_batches(path, config.batch_rows, columns):
        yield batch.filter(pc.is_in(batch["source"], pa.array(config.sources))) if config.sources else batch


def main() -> None:
    with start("encode_reviews", ReviewsConfig) as stage:
        artifacts = Path("artifacts")
        report = encode_reviews(
            stage.config, stage.compute, artifacts / "validated/reviews", artifacts / "base/encoder",
            artifacts / "encoded/reviews", spread,
        )  # fmt: skip
        stage.count(sum(split["tokens"] for split in report["splits"].values()))


if __name__ == "__main__":
    main()
