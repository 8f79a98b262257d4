"""Encoding against transformers' own tokenizer, selection by the lowest row ids, and the length report by hand."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from ajuste.core.errors import DataError, UsageError
from ajuste.core.params import Compute
from ajuste.rows.split import SPLITS
from tasks.encode.reviews import ReviewsConfig, encode_reviews
from tasks.validate.reviews import KEPT

COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)


def config(**changes) -> ReviewsConfig:
    values = {
        "max_tokens": 16,
        "sources": [],
        "rows": {"train": None, "validation": None, "test": None},
        "unknown_share": 1.0,
        "batch_rows": 7,
    }
    return ReviewsConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def validated(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("validated")
    for k, split in enumerate(SPLITS):
        rows = [{
            "row_id": f"{(i * 0x9E3779B97F4A7C15 + k) % 2**64:016x}", "label": i % 3,
            "text": "a good film " * (i % 9 + 1) + "ü ☃ \n!", "source": "ab"[i % 2],
            "location": f"data/x/x.csv:{i + 2}",
        } for i in range(40)]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows, schema=KEPT), folder / f"{split}.parquet")
    (folder / "labels.json").write_text('["x", "y", "z"]')
    (folder / "validation.json").write_text('{"set": "x"}')
    return folder


def test_ids_are_those_of_transformers(validated, tiny_encoder, tmp_path):
    encode_reviews(config(), COMPUTE, validated, tiny_encoder, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    for split in SPLITS:
        texts = pq.read_table(validated / f"{split}.parquet").to_pylist()
        rows = pq.read_table(tmp_path / f"out/{split}.parquet").to_pylist()
        for text, row in zip(texts, rows, strict=True):
            assert row["input_ids"] == tokenizer(text["text"], truncation=True, max_length=16)["input_ids"]
            assert row["length"] == len(tokenizer(text["text"])["input_ids"])
            assert {key: row[key] for key in ("row_id", "label", "source", "location")} == {
                key: text[key] for key in ("row_id", "label", "source", "location")
            }
    assert json.loads((tmp_path / "out/labels.json").read_text()) == ["x", "y", "z"]


def test_report_by_hand(validated, tiny_encoder, tmp_path):
    report = encode_reviews(config(), COMPUTE, validated, tiny_encoder, tmp_path / "out")
    assert report == json.loads((tmp_path / "out/encoding.json").read_text())
    assert (report["set"], report["max_tokens"]) == ("x", 16)
    rows = pq.read_table(tmp_path / "out/test.parquet").to_pylist()
    lengths = sorted(row["length"] for row in rows)
    unknown = AutoTokenizer.from_pretrained(tiny_encoder).unk_token_id
    split = report["splits"]["test"]
    assert split["percentiles"] == {
        "50": lengths[19],
        "90": lengths[35],
        "95": lengths[37],
        "99": lengths[39],
        "100": lengths[39],
    }
    assert split["rows_truncated"] == sum(length > 16 for length in lengths) > 0
    assert split["tokens_cut"] == sum(max(0, length - 16) for length in lengths)
    assert split["tokens"] == sum(len(row["input_ids"]) for row in rows)
    assert split["unknown_tokens"] == sum(row["input_ids"].count(unknown) for row in rows) > 0


def test_the_lowest_row_ids_of_the_sources_are_taken(validated, tiny_encoder, tmp_path):
    limits = {"train": 5, "validation": 100, "test": None}
    encode_reviews(config(sources=["b"], rows=limits), COMPUTE, validated, tiny_encoder, tmp_path / "out")
    for split, limit in limits.items():
        expected = sorted(
            r["row_id"] for r in pq.read_table(validated / f"{split}.parquet").to_pylist() if r["source"] == "b"
        )
        rows = pq.read_table(tmp_path / f"out/{split}.parquet").to_pylist()
        assert sorted(row["row_id"] for row in rows) == expected[:limit]


def test_two_runs_and_other_batches_write_the_same_bytes(validated, tiny_encoder, tmp_path):
    encode_reviews(config(), COMPUTE, validated, tiny_encoder, tmp_path / "one")
    two_threads = COMPUTE.model_copy(update={"threads": 2})
    encode_reviews(config(batch_rows=100), two_threads, validated, tiny_encoder, tmp_path / "two")
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two and len(one) == 5


def test_mistakes_are_named(validated, tiny_encoder, tmp_path):
    with pytest.raises(UsageError, match="no source `imbd`: sources are a, b"):
        encode_reviews(config(sources=["imbd"]), COMPUTE, validated, tiny_encoder, tmp_path / "out")
    with pytest.raises(UsageError, match="tokenizer.json is missing"):
        encode_reviews(config(), COMPUTE, validated, tmp_path, tmp_path / "out")
    with pytest.raises(UsageError, match="max_tokens is 4096, but the base reads 512"):
        encode_reviews(config(max_tokens=4096), COMPUTE, validated, tiny_encoder, tmp_path / "out")
    with pytest.raises(UsageError, match="train.parquet is missing"):
        encode_reviews(config(), COMPUTE, tmp_path, tiny_encoder, tmp_path / "out")


def test_a_split_without_rows_is_an_error_of_the_data(validated, tiny_encoder, tmp_path):
    for split in SPLITS:
        table = pq.read_table(validated / f"{split}.parquet")
        pq.write_table(table.slice(0, 0) if split == "test" else table, tmp_path / f"{split}.parquet")
    for name in ("labels.json", "validation.json"):
        (tmp_path / name).write_text((validated / name).read_text())
    with pytest.raises(DataError, match="test.parquet has no rows of the sources a"):
        encode_reviews(config(sources=["a"]), COMPUTE, tmp_path, tiny_encoder, tmp_path / "out")
