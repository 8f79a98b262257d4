"""Validated rows whose labels are places in a text -> token ids and the labels of tokens.

    words       ajuste/rows/encoded/words.py: input_ids, labels              used by the study `ner`
    questions   ajuste/rows/encoded/questions.py: input_ids, start, end      used by the study `qa`

    train|validation|test.parquet   row_id, source, location, length, and the columns above
    labels.json                     tags in id order, of questions an empty list
    encoding.json                   per split: percentiles of length, rows truncated, tokens

Such sets are read whole: they are small beside sets of texts, since every row of them was labelled by hand.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field
from transformers import PreTrainedTokenizerBase

from ajuste.core.errors import DataError, UsageError
from ajuste.core.figures import write_json
from ajuste.core.params import Config
from ajuste.models.folder import load_tokenizer
from ajuste.rows.encoded.encoding import Counts, count_cut, emptied, inputs_of, write_encoding

Encode = Callable[[PreTrainedTokenizerBase, list[dict], list[str], int], pa.Table]  # rows, labels, max_tokens


class SpansConfig(Config):
    """Section `encode` of the study."""

    max_tokens: int = Field(ge=8, description="Longer rows are cut to this many tokens, special ones included.")


def encode_spans(config: SpansConfig, encode: Encode, validated: Path, base: Path, out: Path) -> dict:
    """Write the files named above into `out` and return encoding.json's content.

    encode: of the kind of rows. Raises UsageError: a missing input, more tokens than the base reads. DataError: a split
    without rows, or a row that cannot be encoded.
    """
    paths = inputs_of(validated)
    if not (base / "tokenizer.json").is_file():
        raise UsageError(f"{base / 'tokenizer.json'} is missing: run `dvc repro base_encoder`")
    tokenizer = load_tokenizer(base)
    if config.max_tokens > tokenizer.model_max_length:
        raise UsageError(f"max_tokens is {config.max_tokens}, but the base reads {tokenizer.model_max_length} at most")
    labels = json.loads((validated / "labels.json").read_text(encoding="utf-8"))
    emptied(out)
    splits = {}
    for split, path in paths.items():
        rows = pq.read_table(path)
        if not rows.num_rows:
            raise DataError(f"{path} has no rows: add data, or raise validate's `sample`")
        table = encode(tokenizer, rows.to_pylist(), labels, config.max_tokens)
        for name in ("location", "source", "row_id"):
            table = table.add_column(0, name, rows[name])
        pq.write_table(table, out / path.name)
        counts, lengths = Counts(), table["length"].to_pylist()
        counts.lengths.update(lengths)
        count_cut(counts, lengths, config.max_tokens)
        splits[split] = counts.report(("tokens", "rows_truncated"))
    write_json(out / "labels.json", labels, indent=2, ensure_ascii=False)
    return write_encoding(out, validated, config.max_tokens, splits)
