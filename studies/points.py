"""What a point of a study does: a small instruction fine-tuning, by the stages' own functions, on fewer rows.

    select   of a validated set, the lowest row ids of each source or category, short conversations only
    encode   stage `encode_instructions` on the selected rows
    tune     encode, then stage `instruct`; returns the model folder
    losses   -log p of the response tokens of each held-out row
    write    the point's result, as JSON: same point, same bytes

A study is a question that the default run does not ask, answered by trainings that differ in one thing: studies/<name>/
has its stages (dvc.yaml), its params.yaml, `point.py`, which makes one point, and `draw.py`, which makes the picture of
all. Points of one study share seed, rows and order, so that they differ in what the point changes alone.
Run one: `ajuste study mitigations`.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ajuste.core.errors import DataError, UsageError
from ajuste.core.params import Compute, typed
from ajuste.learning.layers import ragged
from ajuste.models import decoder
from ajuste.models.probe.texts import supervised
from ajuste.rows.encoded.conversations import read_conversations
from ajuste.rows.encoded.labelled import Rows
from ajuste.rows.split import SPLITS
from tasks.encode.instructions import InstructionsConfig, encode_instructions
from tasks.instruct import InstructConfig, instruct


def select(validated: Path, out: Path, column: str, limits: dict[str, dict[str, int]], max_chars: int) -> Path:
    """Write `out` in the form of `validated`: of each split and group, the rows of the lowest ids.

    column: `source` or `category`. limits: split -> {group: most rows}; other groups are left out. max_chars: of all
    messages of a conversation; general text is not measured, since encoding cuts it. Raises DataError for a group
    without rows.
    """
    for name in ("validation.json", *(f"{split}.parquet" for split in SPLITS)):
        if not (validated / name).is_file():
            raise UsageError(f"{validated / name} is missing: run the stage that validates the set")
    out.mkdir(parents=True)
    shutil.copyfile(validated / "validation.json", out / "validation.json")
    for split in SPLITS:
        path = validated / f"{split}.parquet"
        table, left = pq.read_table(path).sort_by("row_id"), dict(limits[split])
        kept = []
        for i, row in enumerate(table.select([column, "messages"]).to_pylist()):
            messages = row["messages"]
            text = messages[0]["role"] == "text"
            short = text or sum(len(message["content"]) for message in messages) <= max_chars
            if short and left.get(row[column], 0):
                left[row[column]] -= 1
                kept.append(i)
        found = set(table[column].take(pa.array(kept, pa.int64())).to_pylist())
        for group in sorted(limits[split].keys() - found):
            raise DataError(f"{path} has no row of {column} `{group}` with at most {max_chars} characters")
        pq.write_table(table.take(pa.array(kept, pa.int64())), out / path.name)
    return out


def tune(
    values: dict, compute: Compute, selected: Path, max_tokens: int, weights: dict[str, float], base: Path, folder: Path
) -> tuple[Path, Path, dict]:
    """Encode and train; returns (encoded folder, model folder, card). values: the section `instruct` of the point."""
    encoded, model, checkpoints = (folder / name for name in ("encoded", "model", "checkpoints"))
    encode(compute, selected, max_tokens, weights, base, encoded)
    checkpoints.mkdir()
    card = instruct(typed(InstructConfig, values, "instruct"), compute, encoded, base, model, checkpoints)
    shutil.rmtree(checkpoints)
    return encoded, model, card


def encode(
    compute: Compute, selected: Path, max_tokens: int, weights: dict[str, float], base: Path, out: Path
) -> None:
    """Stage `encode_instructions` on the selected rows."""
    every = {split: None for split in SPLITS}
    config = InstructionsConfig(max_tokens=max_tokens, weights=weights, rows=every, batch_rows=512)
    encode_instructions(config, compute, selected, base, out)


def losses(model: Path, base: Path, encoded: Path, compute: Compute, dtype: str) -> tuple[Rows, np.ndarray]:
    """The test rows and their [N, 2]: sum of -log p over the response, and its tokens. `model` may be the base."""
    net, _ = load(model, base, compute, dtype)
    rows = read_conversations(encoded, "test")
    return rows, ragged.row_losses(net, list(rows), 4096).numpy()


def load(model: Path, base: Path, compute: Compute, dtype: str):
    """The model of a folder, adapter or whole, or the base itself; and its tokenizer."""
    number = getattr(torch, dtype)
    net, tokenizer = decoder.load_base(base, number) if model == base else decoder.load(model, base, number)[:2]
    supervised(net)
    return net.to(compute.torch_device()), tokenizer


def write(path: Path, point: dict) -> None:
    """One point as JSON: same point, same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(point, indent=1, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def errors_told() -> Iterator[None]:
    """What is wrong with parameters or data ends the process with one line."""
    try:
        yield
    except (DataError, UsageError) as error:
        raise SystemExit(f"error: {error}") from None
