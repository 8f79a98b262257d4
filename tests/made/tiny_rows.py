"""Encoded sets of a few made-up rows, in the layout of stage `encode`, whose labels can be learnt from one word."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

GOOD, BAD, PLAIN = (
    ["good", "warm", "funny"],
    ["bad", "dull", "slow"],
    "a the film is was plot actor scene and it".split(),
)


def write_set(folder: Path, tables: dict[str, pa.Table], labels: list[str], max_tokens: int = 32) -> Path:
    """The files of an encoded set."""
    folder.mkdir(parents=True)
    for split, table in tables.items():
        pq.write_table(table, folder / f"{split}.parquet")
    (folder / "labels.json").write_text(json.dumps(labels))
    (folder / "encoding.json").write_text(json.dumps({"max_tokens": max_tokens, "set": "made-up"}))
    return folder


def sentences(tokenizer: PreTrainedTokenizerBase, rows: int, seed: int) -> pa.Table:
    """Sentences of unequal length with one telling word: label 1 for a good one, 0 for a bad one."""
    rng = random.Random(seed)
    texts, labels = [], []
    for _ in range(rows):
        label = rng.randrange(2)
        words = rng.choices(PLAIN, k=rng.randint(2, 14))
        words.insert(rng.randrange(len(words)), rng.choice(GOOD if label else BAD))
        texts.append(" ".join(words))
        labels.append(label)
    ids = tokenizer(texts)["input_ids"]
    return pa.table(
        {
            "row_id": [f"{seed:02d}{i:014d}" for i in range(rows)],
            "input_ids": pa.array(ids, pa.list_(pa.int32())),
            "label": pa.array(labels, pa.int32()),
            "source": ["even" if i % 2 == 0 else "odd" for i in range(rows)],
            "length": pa.array([len(row) for row in ids], pa.int32()),
            "location": [f"made-up:{i}" for i in range(rows)],
        }
    )


def sentence_set(folder: Path, tokenizer: PreTrainedTokenizerBase, train: int = 60) -> Path:
    """An encoded set of sentences: `train` rows for training, 24 for validation, 30 for the test."""
    tables = {"train": sentences(tokenizer, train, 1), "validation": sentences(tokenizer, 24, 2)}
    return write_set(folder, {**tables, "test": sentences(tokenizer, 30, 3)}, ["negative", "positive"])
