"""Conversations -> token ids and labels, with a report on what was cut (`python -m tasks.encode.instructions`).

    input_ids, labels   ajuste/learning/text/masking.py: responses and their ends of turn are trained, prompts are not,
                        nor are responses of weight 0
    prompt_tokens       tokens before the last trained response;  reference: that response's text
    length              tokens before any cut

The rows of a split: without the sources of weight 0; of these the `rows` lowest row ids (null: all); and in the train
split, of a source of weight w, each row floor(w) times and the lowest row ids of it once more, so that n rows become
round(w n): 0.5 takes half of them, 2 takes each twice (with the same row id). Validation and test are measured, so
they are not weighted, and they hold no general text: a mixture never changes what it is compared on.

    train|validation|test.parquet   row_id, input_ids, labels, prompt_tokens, reference, category, source, length,
                                    location
    encoding.json                   per split: rows, tokens, trained tokens, percentiles of length, what was cut

A row that cannot be written (a control token of the base inside a content) is dropped and counted, the first named.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from ajuste.core.errors import DataError, UsageError
from ajuste.core.launch.where import Spread, spread
from ajuste.core.params import Compute, Config
from ajuste.core.stage import start
from ajuste.rows.encoded.encoding import (
    Counts,
    RowLimits,
    as_numbers,
    emptied,
    inputs_of,
    last_of_lowest,
    sources_in,
    write_encoding,
)
from ajuste.rows.encoded.tokenizer import IDS, tokenizer_of
from ajuste.rows.parquet import ParquetRows, read_batches

ENCODED = pa.schema(
    [("row_id", pa.string()), ("input_ids", IDS), ("labels", IDS), ("prompt_tokens", pa.int32())]
    + [("reference", pa.string()), ("category", pa.string()), ("source", pa.string())]
    + [("length", pa.int32()), ("location", pa.string())]
)
SUMS = ("tokens", "trained_tokens", "rows_prompt_cut", "rows_response_cut", "tokens_cut")  # of a split's report
NAMES = ["row_id", "messages", "category", "source", "location"]


class InstructionsConfig(Config):
    """Section `encode.instructions`."""

    max_tokens: int = Field(ge=16, description="Longer rows are cut: prompt first, from the left.")
    weights: dict[str, float] = Field(description="Factor of a source in the train split; 0 leaves it out; else 1.")
    rows: RowLimits = Field(description="Rows of each split before weighting, the lowest row ids; null: all.")
    batch_rows: int = Field(gt=0, description="Rows in memory at a time; changes no result.")


@dataclass
class Chosen:
    """Which rows of a split are taken, and how often."""

    last: str | None = None  # the highest row id that is taken; None: all are
    copies: dict[str, tuple[int, str]] = field(default_factory=dict)  # source -> (times, ids up to here once more)

    def times(self, row_id: str, source: str) -> int:
        if self.last is not None and row_id > self.last:
            return 0
        whole, once_more_to = self.copies.get(source, (1, ""))
        return whole + (row_id <= once_more_to)


def encode_instructions(
    config: InstructionsConfig, compute: Compute, validated: Path, base: Path, out: Path, spread: Spread = map
) -> dict:
    """Write the files named above into `out` and return encoding.json's content.

    spread: where batches are encoded (core/launch/where.py). Raises UsageError: an unknown source, a missing input,
    more tokens than the base has positions. DataError: a split without rows.
    """
    paths = inputs_of(validated)
    tokenizer = tokenizer_of(base, config.max_tokens)
    _check_weights(config.weights, sources_in(paths.values()))
    emptied(out)
    splits = {}
    for split, path in paths.items():
        splits[split] = _encode_split(path, out / path.name, config, split, tokenizer, spread)
    return write_encoding(out, validated, config.max_tokens, splits)


def _check_weights(weights: dict[str, float], known: set[str]) -> None:
    for source, weight in weights.items():
        if source not in known:
            raise UsageError(f"params.yaml: encode.instructions.weights has no source `{source}` to weigh: "
                             f"sources are {', '.join(sorted(known)[:20]) or 'none'}")  # fmt: skip
        if weight < 0:
            raise UsageError(f"params.yaml: encode.instructions.weights.{source} is {weight}: it must be 0 or more")


def _batches(path: Path, config: InstructionsConfig, split: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The rows that may be taken: no source of weight 0, and general text in training alone."""
    left_out = pa.array([source for source, weight in config.weights.items() if weight == 0], pa.string())
    for batch in read_batches(path, config.batch_rows, [*columns, "messages"]):
        kept = pc.invert(pc.is_in(batch["source"], left_out))
        if split != "train":
            roles = pc.struct_field(pc.list_element(batch["messages"], 0), "role")
            kept = pc.and_(kept, pc.not_equal(roles, "text"))
        yield batch.filter(kept)


def _choose(path: Path, config: InstructionsConfig, split: str) -> Chosen:
    rows, weights = getattr(config.rows, split), config.weights if split == "train" else {}
    if rows is None and not weights:
        return Chosen()
    parts: dict[str, list[np.ndarray]] = {}
    for batch in _batches(path, config, split, ["row_id", "source"]):
        for source in batch["source"].unique().to_pylist():
            chosen = batch.filter(pc.equal(batch["source"], source))["row_id"].to_pylist()
            parts.setdefault(source, []).append(as_numbers(chosen))
    ids = {source: np.concatenate(found) for source, found in parts.items()}
    last = None
    if rows is not None and rows < sum(len(found) for found in ids.values()):
        last = last_of_lowest(np.concatenate(list(ids.values())), rows)
        ids = {source: found[found <= int(last, 16)] for source, found in ids.items()}
    copies = {}
    for source, found in ids.items():
        whole, part = divmod(weights.get(source, 1.0), 1.0)
        more = round(part * len(found))
        copies[source] = (int(whole), last_of_lowest(found, more) if more else "")
    return Chosen(last, copies)


def _encode_split(
    path: Path, out: Path, config: InstructionsConfig, split: str, tokenizer: object, spread: Spread
) -> dict:
    chosen, counts, sources = _choose(path, config, split), Counts(), Counter()
    batches = _batches(path, config, split, NAMES + ["weights"] * ("weights" in pq.read_schema(path).names))
    with ParquetRows(out, ENCODED) as sink:
        for columns, found in spread(partial(_encode_batch, tokenizer, chosen, config.max_tokens), batches):
            sink.write(columns)
            counts.add(found)
            sources.update(columns["source"])
    _tell(counts, split, config.max_tokens)
    if not sink.rows:
        why = f"; dropped: {counts.first}" if counts.first else ": add data, or leave out fewer sources"
        raise DataError(f"{path} has no rows to encode{why}")
    return counts.report(SUMS, ("unfit", "unwritable"), sources=sources)


def _encode_batch(tokenizer: object, chosen: Chosen, max_tokens: int, batch: pa.RecordBatch) -> tuple[dict, Counts]:
    from ajuste.learning.text.masking import fit

    columns: dict[str, list] = {name: [] for name in ENCODED.names}
    counts = Counts()
    for row in batch.to_pylist():
        times = chosen.times(row["row_id"], row["source"])
        if not times:
            continue
        messages = _weighed(row)
        try:
            fitted, why = fit(tokenizer, messages, max_tokens), "no response fits max_tokens"
        except ValueError as error:
            fitted, why = None, str(error)
        if fitted is None:
            counts.drop("unfit" if why.startswith("no response") else "unwritable", row, why)
            continue
        reference = next(turn["content"] for turn in reversed(messages) if turn["role"] != "user"
                         and turn.get("weight", 1))  # fmt: skip
        made = (row["row_id"], fitted.input_ids, fitted.labels, fitted.prompt_tokens, reference)
        made += (row["category"], row["source"], fitted.length, row["location"])
        for name, value in zip(ENCODED.names, made, strict=True):
            columns[name] += [value] * times
        _count(counts, fitted, times)
    return columns, counts


def _weighed(row: dict) -> list[dict]:
    """The messages of a row; those of weight 0 say so."""
    if not row.get("weights"):
        return row["messages"]
    return [turn if weight else {**turn, "weight": 0} for turn, weight in zip(row["messages"], row["weights"],
                                                                               strict=True)]  # fmt: skip


def _tell(counts: Counts, split: str, max_tokens: int) -> None:
    """Nothing is cut without a word."""
    if counts.sums["tokens_cut"]:
        sums = counts.sums
        print(f"encode: {split}: cut to {max_tokens} tokens, {sums['rows_prompt_cut']:,} prompts lost their beginning "
              f"and {sums['rows_response_cut']:,} responses or texts their end, of {counts.lengths.total():,} rows; "
              f"{sums['tokens_cut']:,} tokens in all", file=sys.stderr)  # fmt: skip
    if counts.dropped:
        print(f"encode: {counts.dropped.total()} rows of {split} dropped; first: {counts.first}", file=sys.stderr)


def _count(counts: Counts, fitted, times: int) -> None:
    counts.lengths[fitted.length] += times
    counts.sums.update({
        "tokens": times * len(fitted.input_ids),
        "trained_tokens": times * fitted.trained,
        "rows_prompt_cut": times * (fitted.prompt_cut > 0),
        "rows_response_cut": times * (fitted.response_cut > 0),
        "tokens_cut": times * (fitted.prompt_cut + fitted.response_cut),
    })  # fmt: skip


def main() -> None:
    with start("encode_instructions", InstructionsConfig) as stage:
        artifacts = Path("artifacts")
        report = encode_instructions(
            stage.config, stage.compute, artifacts / "validated/instructions", artifacts / "base/decoder",
            artifacts / "encoded/instructions", spread,
        )  # fmt: skip
        stage.count(sum(split["tokens"] for split in report["splits"].values()))


if __name__ == "__main__":
    main()
