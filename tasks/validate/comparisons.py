"""What stage `validate_preferences` writes of a split: comparisons, the prompts that a policy answers, and rated texts.

Of rated texts comparisons are formed (ajuste/rows/layouts/rated_pairs.py), each with what its raters agree on. In train
a text whose first words a policy continues stands in no comparison.
"""

import json
import os

import numpy as np
import pyarrow as pa

from ajuste.learning.statistics.agreement import one_against_rest, split_half
from ajuste.rows.checks.validation import Work
from ajuste.rows.layouts.rated_pairs import RatedTexts, comparison, mean, prefill_of
from ajuste.rows.parquet import MESSAGES, ParquetRows, read_batches
from ajuste.rows.quality.report import Quality
from ajuste.rows.split import row_id, text_digest

LABELS = pa.list_(pa.float64())
KEPT = pa.schema(
    [("row_id", pa.string()), ("prompt", MESSAGES), ("responses", pa.list_(pa.string())), ("ratings", LABELS)]
    + [(name, pa.float64()) for name in ("agreement", "margin", "one_against_rest", "split_half")]
    + [("source", pa.string()), ("location", pa.string())]
)
PROMPTS = pa.schema(
    [("row_id", pa.string()), ("prompt", MESSAGES), ("prefill", pa.string())]
    + [("source", pa.string()), ("location", pa.string())]
)
RATED = pa.schema(
    [("row_id", pa.string()), ("text", pa.string()), ("rating", pa.float64()), ("raters", pa.int32())]
    + [("split", pa.string())]
)


def write_split(work: Work, split: str, quality: Quality, texts: ParquetRows) -> None:
    """The comparisons and prompts of a split from its kept rows, which write_rows left where they go."""
    config, scratch = work.config, work.staged.parent
    path, rows_path = work.out / f"{split}.parquet", scratch / f"{split}.parquet"
    os.replace(path, rows_path)
    rated = RatedTexts(scratch / split, work.counts[f"kept:{split}"], config.prompt_share)
    seen: set[bytes] = set()
    with ParquetRows(path, KEPT) as sink, ParquetRows(work.out / f"prompts_{split}.parquet", PROMPTS) as prompts:
        for batch in read_batches(rows_path, config.batch_rows):
            whole = [row for row in batch.to_pylist() if not _is_rated(row, rated)]
            _write_comparisons(sink, split, whole, quality)
            _write_prompts(prompts, config.set, whole, seen)
        pairs = ((comparison(config.set, *pair), *pair) for pair in rated.pairs(apart=split == "train"))
        for some in _batches(pairs, config.batch_rows):
            _write_comparisons(sink, split, [_with_humans(*pair) for pair in some], quality)
        for some in _batches(rated.texts(), config.batch_rows):
            _write_rated(texts, prompts, split, some, quality)
    rated.close()
    work.counts[f"unpaired:{split}"] = rated.unpaired
    work.counts[f"comparisons:{split}"], work.counts[f"prompts:{split}"] = sink.rows, prompts.rows


def _is_rated(row: dict, rated: RatedTexts) -> bool:
    """Whether the row is a rated text; then it is put to the others."""
    if row["raters"] is None:
        return False
    names = ("row_id", "raters", "prompt", "source", "location")
    rated.add({"text": row["responses"][0], **{name: row[name] for name in names}})
    return True


def _with_humans(row: dict, chosen: dict, rejected: dict) -> dict:
    raters = chosen["raters"], rejected["raters"]
    generator = np.random.default_rng(int(row["row_id"], 16))
    return row | {"one_against_rest": one_against_rest(*raters), "split_half": split_half(*raters, generator)}


def _write_comparisons(sink: ParquetRows, split: str, rows: list[dict], quality: Quality) -> None:
    for row in rows:
        ratings = row["ratings"]
        row["margin"] = ratings[0] - ratings[1] if ratings and len(ratings) == 2 else None
        row.setdefault("one_against_rest", None)
        row.setdefault("split_half", None)
        quality.add(split, row, row.get("position"))
    sink.write({name: [row[name] for row in rows] for name in KEPT.names})


def _write_prompts(sink: ParquetRows, set_name: str, rows: list[dict], seen: set[bytes]) -> None:
    """Each prompt once, from where it stands first."""
    new = []
    for row in rows:
        said = json.dumps([[turn["role"], turn["content"]] for turn in row["prompt"]])
        key = text_digest(said)[:8]
        if key not in seen:
            seen.add(key)
            new.append(row | {"row_id": row_id(set_name, said, "", "prompt"), "prefill": ""})
    sink.write({name: [row[name] for row in new] for name in PROMPTS.names})


def _write_rated(texts: ParquetRows, prompts: ParquetRows, split: str, rows: list[tuple[dict, bool]],
                 quality: Quality) -> None:  # fmt: skip
    texts.write({
        **{name: [text[name] for text, _ in rows] for name in ("row_id", "text")},
        "rating": [mean(text) for text, _ in rows],
        "raters": [len(text["raters"]) for text, _ in rows],
        "split": [split] * len(rows),
    })  # fmt: skip
    free = [text | {"prefill": prefill_of(text["text"])} for text, free in rows if free or split != "train"]
    free = [text for text in free if text["prefill"]]
    prompts.write({name: [text[name] for text in free] for name in PROMPTS.names})
    if split == "train":  # in a comparison or not, a text of this set is one that others should not hold
        quality.add_texts(split, [text["text"] for text, kept_back in rows if kept_back])


def _batches(rows, size: int):
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
