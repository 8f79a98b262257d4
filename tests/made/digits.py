"""Which figures of a stage's outs have more digits than they should: every JSON, JSON lines, CSV and Parquet file."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ajuste.core.figures import rounded

# What a later stage computes with, and what is data or configuration and no figure.
EXACT = {
    "ajuste.json": ("bias", "normalisation"),  # a reward model's: part of its weights
    "rows.parquet": ("score",),  # log-probabilities that F is computed from
    "config.json": None, "generation_config.json": None, "adapter_config.json": None, "tokenizer.json": None,
    "tokenizer_config.json": None,
    "pairs.parquet": ("right", "margin"),  # halves and thirds, and differences of people's ratings
}  # fmt: skip
DATA = ("validated", "encoded")  # their Parquet files hold ratings as people gave them


def unrounded(folder: Path) -> list[str]:
    """"file: key = value" of every figure below a folder of outs with more than six significant digits."""
    found = []
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        exact = EXACT.get(path.name, ())
        if exact is None or path.suffix == ".parquet" and set(DATA) & set(path.parts):
            continue
        for key, value in _figures(path):
            if key.split(".")[0].split("[")[0] not in exact and not _short(value):
                found.append(f"{path.relative_to(folder)}: {key} = {value!r}")
    return found


def _short(value: float | np.float32) -> bool:
    return bool(np.isnan(value)) or type(value)(rounded(float(value))) == value


def _figures(path: Path) -> Iterator[tuple[str, float | np.float32]]:
    if path.suffix == ".json":
        yield from _floats(json.loads(path.read_text(encoding="utf-8")), "")
    elif path.suffix == ".jsonl":
        for line in path.read_text(encoding="utf-8").splitlines():
            yield from _floats(json.loads(line), "")
    elif path.suffix == ".csv":
        for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
            yield from ((key, float(value)) for key, value in row.items() if _is_number(value))
    elif path.suffix == ".parquet":
        table = pq.read_table(path)
        for name in table.column_names:
            column = table[name].combine_chunks()
            while pa.types.is_list(column.type):
                column = column.flatten()
            if pa.types.is_floating(column.type):
                yield from ((name, value) for value in column.drop_null().to_numpy(zero_copy_only=False))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _floats(value: object, place: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield place, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _floats(item, f"{place}.{key}".lstrip("."))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _floats(item, f"{place}[{number}]")
