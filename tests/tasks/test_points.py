"""studies/points.py: which rows a study's point takes, and that it trains and scores them as the stages do."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ajuste.core.errors import DataError, UsageError
from ajuste.core.params import Compute
from ajuste.models.folder import ADAPTER_CONFIG
from studies.points import losses, select, tune
from tests.made.tiny_decoders import ANSWERED, ASKED, tiny_base

COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)
VALUES = {
    "method": "lora", "r": 2, "alpha": 4, "lora_dropout": 0.0, "targets": ["all-linear"], "virtual_tokens": 4,
    "bottleneck_width": 4, "dtype": "float32", "lr": 1e-2, "warmup": 0.0, "epochs": 1, "batch_rows": 2,
    "accumulation": 1, "weight_decay": 0.0, "l2_to_w0": 0.0, "max_grad_norm": 1.0, "evaluations": 1, "patience": 1,
}  # fmt: skip


@pytest.fixture
def validated(tmp_path: Path) -> Path:
    """Three splits of six conversations (odd ones of category `odd`) and two pieces of general text."""
    folder = tmp_path / "validated"
    folder.mkdir()
    (folder / "validation.json").write_text(json.dumps({"set": "tiny"}))
    for split in ("train", "validation", "test"):
        rows = [
            {
                "row_id": f"{99 - number:016x}",
                "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}],
                "category": ("even", "odd")[number % 2], "source": "chat", "location": f"chat:{number}",
            }
            for number, (asked, answered) in enumerate(zip(ASKED, ANSWERED, strict=True))
        ]  # fmt: skip
        rows += [
            {
                "row_id": f"{number:016x}", "messages": [{"role": "text", "content": "a film and a plot " * 40}],
                "category": "", "source": "wiki", "location": f"wiki:{number}",
            }
            for number in range(2)
        ]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
    return folder


def limits(**groups: int) -> dict[str, dict[str, int]]:
    return {"train": groups, "validation": {"chat": 1}, "test": {"chat": 9}}


def test_short_rows_of_the_lowest_ids_are_taken(validated: Path, tmp_path: Path) -> None:
    out = select(validated, tmp_path / "out", "source", limits(chat=2, wiki=1), max_chars=40)
    train = pq.read_table(out / "train.parquet").to_pylist()
    short = [i for i, pair in enumerate(zip(ASKED, ANSWERED, strict=True)) if sum(map(len, pair)) <= 40]
    assert 2 < len(short) < len(ASKED)
    # later rows have lower ids; general text is not measured
    assert [row["location"] for row in train] == ["wiki:0", *(f"chat:{i}" for i in sorted(short)[-2:][::-1])]
    assert pq.read_metadata(out / "validation.parquet").num_rows == 1
    assert pq.read_table(out / "test.parquet")["source"].unique().to_pylist() == ["chat"]


def test_groups_may_be_categories_and_an_empty_one_is_refused(validated: Path, tmp_path: Path) -> None:
    every = {split: {"odd": 9} for split in ("train", "validation", "test")}
    out = select(validated, tmp_path / "odd", "category", every, max_chars=400)
    assert pq.read_table(out / "train.parquet")["location"].to_pylist() == ["chat:5", "chat:3", "chat:1"]
    with pytest.raises(DataError, match="no row of category `prime`"):
        select(validated, tmp_path / "prime", "category", {**every, "train": {"prime": 1}}, max_chars=400)
    (validated / "test.parquet").unlink()
    with pytest.raises(UsageError, match="test.parquet is missing"):
        select(validated, tmp_path / "missing", "category", every, max_chars=400)


def test_a_point_trains_each_row_as_often_as_its_weight_says(validated: Path, tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    selected = select(validated, tmp_path / "selected", "source", limits(chat=4, wiki=2), max_chars=400)
    encoded, model, card = tune(VALUES, COMPUTE, selected, 48, {"chat": 2.0, "wiki": 0.5}, base, tmp_path)
    sources = pq.read_table(encoded / "train.parquet")["source"].to_pylist()
    assert (sources.count("chat"), sources.count("wiki")) == (8, 1)
    assert (model / ADAPTER_CONFIG).is_file() and card["method"] == "lora"
    assert not (tmp_path / "checkpoints").exists()
    rows, before = losses(base, base, encoded, COMPUTE, "float32")
    _, after = losses(model, base, encoded, COMPUTE, "float32")
    assert len(rows) == len(before) == 6
    assert after[:, 0].sum() < before[:, 0].sum()  # the test rows are the training rows here
    with pytest.raises(UsageError, match="unknown key `instruct.rank`"):
        tune({**VALUES, "rank": 3}, COMPUTE, selected, 48, {}, base, tmp_path / "again")
