"""Comparisons and prompts -> token ids, with a report on what was left out (`python -m tasks.encode.preferences`).

    train|validation|test.parquet   row_id, prompt_ids, responses (best first, each with its end of turn), ratings,
                                    agreement, margin, one_against_rest, split_half, source, location
    prompts_<split>.parquet         row_id, prompt_ids (the prompt and the first words of its answer, if it has any:
                                    what a policy continues), prefill, prefill_tokens, source, location
    encoding.json                   per split: rows, tokens, percentiles of length, what was left out

prompt_ids are those of a generation (ajuste/learning/text/chat.py); a prompt and a response laid end to end are what
training on conversations reads. The tokens of a prefill and its continuation need not be those of the whole text.

The rows of a split: pairs whose margin, where they have one, is at least `min_margin`, and of these the `rows` lowest
row ids (null: all); of the prompts the `prompts` lowest. A prompt that is too long with the longest of its responses
loses its beginning (ajuste/learning/text/masking.py). A comparison of which a response would be cut is left out, for
the reward stands at a response's end; so is a prompt of over `max_prompt_tokens` and what this base cannot write.
"""

import json
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from ajuste.core.errors import DataError, UsageError
from ajuste.core.params import Compute, Config
from ajuste.core.stage import start
from ajuste.rows.encoded.encoding import (
    Counts,
    RowLimits,
    as_numbers,
    emptied,
    inputs_of,
    last_of_lowest,
    write_encoding,
)
from ajuste.rows.encoded.tokenizer import IDS, tokenizer_of
from ajuste.rows.parquet import ParquetRows, read_batches

DROPPED = ("too_long", "unwritable")
CARRIED = ("agreement", "margin", "one_against_rest", "split_half")
ENCODED = pa.schema(
    [("row_id", pa.string()), ("prompt_ids", IDS), ("responses", pa.list_(IDS)), ("ratings", pa.list_(pa.float64()))]
    + [(name, pa.float64()) for name in CARRIED]
    + [("source", pa.string()), ("location", pa.string())]
)
PROMPTS = pa.schema(
    [("row_id", pa.string()), ("prompt_ids", IDS), ("prefill", pa.string()), ("prefill_tokens", pa.int32())]
    + [("source", pa.string()), ("location", pa.string())]
)


class Margins(Config):
    """The least margin of the pairs of each split."""

    train: float = Field(ge=0)
    validation: float = Field(ge=0)
    test: float = Field(ge=0)


class PreferencesConfig(Config):
    """Section `encode.preferences`."""

    max_tokens: int = Field(ge=16, description="Of a prompt and a response together.")
    max_prompt_tokens: int = Field(ge=8, description="Longer prompts are not given to a policy.")
    min_margin: Margins = Field(description="Pairs with a smaller difference of mean ratings are left out.")
    rows: RowLimits = Field(description="Comparisons of each split, the lowest row ids; null: all.")
    prompts: RowLimits = Field(description="Prompts of each split, the lowest row ids; null: all.")
    batch_rows: int = Field(gt=0, description="Rows in memory at a time; changes no result.")


def encode_preferences(config: PreferencesConfig, compute: Compute, validated: Path, base: Path, out: Path) -> dict:
    """Write the files named above into `out` and return encoding.json's content.

    Raises UsageError: a missing input, more tokens than the base has positions. DataError: a split without comparisons
    or without prompts.
    """
    paths = inputs_of(validated)
    tokenizer = tokenizer_of(base, config.max_tokens)
    emptied(out)
    splits = {}
    for split, path in paths.items():
        found = _encode_comparisons(path, out / path.name, config, split, tokenizer)
        prompts = path.with_name(f"prompts_{path.name}")
        if not prompts.is_file():
            raise UsageError(f"{prompts} is missing: run `dvc repro validate_{validated.name}`")
        splits[split] = found | {"prompts": _encode_prompts(prompts, out / prompts.name, config, split, tokenizer)}
    return write_encoding(out, validated, config.max_tokens, splits)


# --- comparisons ----------------------------------------------------------------------------------------------------


def _encode_comparisons(path: Path, out: Path, config: PreferencesConfig, split: str, tokenizer) -> dict:
    least, counts = getattr(config.min_margin, split), Counts()

    def batches(columns: list[str]) -> Iterator[pa.RecordBatch]:
        for batch in read_batches(path, config.batch_rows, [*columns, "margin"]):
            # margins are differences of means: 3.5 - 3.0 must count as 0.5
            enough = pc.fill_null(pc.greater_equal(batch["margin"], least - 1e-9), True)
            yield batch.filter(enough)

    last = _last(batches(["row_id"]), getattr(config.rows, split))
    with ParquetRows(out, ENCODED) as sink:
        for batch in batches([name for name in ENCODED.names if name not in ("prompt_ids", "margin")] + ["prompt"]):
            rows = [row for row in batch.to_pylist() if last is None or row["row_id"] <= last]
            made = [_comparison(row, config.max_tokens, tokenizer, counts) for row in rows]
            kept = [{**row, **ids} for row, ids in zip(rows, made, strict=True) if ids]
            sink.write({name: [row[name] for row in kept] for name in ENCODED.names})
    _tell(counts, f"comparisons of {split}")
    if not sink.rows:
        if counts.first:
            why = f"; left out: {counts.first}"
        elif pq.read_metadata(path).num_rows:
            why = f" with a margin of {least:g}: add data, or lower it"
        else:
            why = ": add data"
        raise DataError(f"{path} has no comparisons to encode{why}")
    found = counts.report(("tokens",), DROPPED, sink.rows)
    return found | {"responses": counts.lengths.total(), "prompts_cut": counts.sums["cut"]}


def _comparison(row: dict, max_tokens: int, tokenizer, counts: Counts) -> dict | None:
    """The ids of a row; None if it is left out."""
    from ajuste.learning.text.chat import segments
    from ajuste.learning.text.masking import fit

    try:
        found = [segments(tokenizer, [*row["prompt"], {"role": "assistant", "content": text}])
                 for text in row["responses"]]  # fmt: skip
        answers = [parts[-1][0] for parts in found]
        longest = max(range(len(answers)), key=lambda i: len(answers[i]))
        asked, prompt_cut = [token for part, _ in found[0][:-1] for token in part], 0
        if len(asked) + len(answers[longest]) > max_tokens:
            turn = {"role": "assistant", "content": row["responses"][longest]}
            fitted = fit(tokenizer, [*row["prompt"], turn], max_tokens)
            if fitted is None or fitted.response_cut:
                words = f"a response has {len(answers[longest])} tokens, and max_tokens is {max_tokens}"
                return counts.drop("too_long", row, words)
            asked, prompt_cut = fitted.input_ids[: fitted.prompt_tokens], fitted.prompt_cut
    except ValueError as error:
        return counts.drop("unwritable", row, str(error))
    counts.sums["cut"] += prompt_cut > 0
    counts.sums["tokens"] += sum(len(asked) + len(ids) for ids in answers)
    counts.lengths.update(len(asked) + len(ids) for ids in answers)
    return {"prompt_ids": asked, "responses": answers}


# --- prompts --------------------------------------------------------------------------------------------------------


def _encode_prompts(path: Path, out: Path, config: PreferencesConfig, split: str, tokenizer) -> dict:
    from ajuste.learning.text.chat import prompt_ids

    @lru_cache(16)  # rated texts all have one prompt
    def asked(prompt: str) -> list[int]:
        return prompt_ids(tokenizer, json.loads(prompt))

    counts = Counts()
    last = _last(read_batches(path, config.batch_rows, ["row_id"]), getattr(config.prompts, split))
    with ParquetRows(out, PROMPTS) as sink:
        for batch in read_batches(path, config.batch_rows):
            rows = [row for row in batch.to_pylist() if last is None or row["row_id"] <= last]
            made = [_prompt(row, config.max_prompt_tokens, tokenizer, asked, counts) for row in rows]
            kept = [{**row, **ids} for row, ids in zip(rows, made, strict=True) if ids]
            sink.write({name: [row[name] for row in kept] for name in PROMPTS.names})
    _tell(counts, f"prompts of {split}")
    if not sink.rows:
        why = f"; left out: {counts.first}" if counts.first else ": add data, or raise validate's `prompt_share`"
        raise DataError(f"{path} has no prompts to encode{why}")
    return counts.report(("tokens",), DROPPED, sink.rows)


def _prompt(row: dict, most: int, tokenizer, asked: Callable[[str], list[int]], counts: Counts) -> dict | None:
    """The ids of a row; None if it is left out. asked: the ids of a prompt that is given as JSON."""
    from ajuste.learning.text.chat import encode

    try:
        ids = asked(json.dumps(row["prompt"]))
    except ValueError as error:
        return counts.drop("unwritable", row, str(error))
    begun = encode(tokenizer, row["prefill"], control=False) if row["prefill"] else []
    tokens = len(ids) + len(begun)
    if tokens > most:
        return counts.drop("too_long", row, f"the prompt has {tokens} tokens, and max_prompt_tokens is {most}")
    counts.lengths[tokens] += 1
    counts.sums["tokens"] += tokens
    return {"prompt_ids": ids + begun, "prefill_tokens": len(begun)}


# --- pieces ---------------------------------------------------------------------------------------------------------


def _last(batches: Iterator[pa.RecordBatch], rows: int | None) -> str | None:
    """The highest row id that is taken; None if all are."""
    if rows is None:
        return None
    ids = np.concatenate([np.zeros(0, np.uint64), *(as_numbers(batch["row_id"].to_pylist()) for batch in batches)])
    return last_of_lowest(ids, rows) if rows < len(ids) else None


def _tell(counts: Counts, what: str) -> None:
    """Nothing is left out without a word."""
    if counts.sums["cut"]:
        print(f"encode: {what}: {counts.sums['cut']:,} prompts lost their beginning", file=sys.stderr)
    if counts.dropped:
        print(f"encode: {what}: {counts.dropped.total():,} left out; first: {counts.first}", file=sys.stderr)


def main() -> None:
    with start("encode_preferences", PreferencesConfig) as stage:
        artifacts = Path("artifacts")
        report = encode_preferences(
            stage.config, stage.compute, artifacts / "validated/preferences", artifacts / "base/decoder",
            artifacts / "encoded/preferences",
        )  # fmt: skip
        stage.count(sum(split["tokens"] for split in report["splits"].values()))


if __name__ == "__main__":
    main()
