"""Encoded conversations: rows by hand, mixtures counted, cuts reported, and what `show-mask` and the report show."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from ajuste.core.errors import DataError, UsageError
from ajuste.core.imports import ROOT
from ajuste.core.params import Compute
from ajuste.learning.text import chat
from ajuste.rows.encoded.mask import as_html, read_masked
from ajuste.rows.split import SPLITS
from tasks.encode.instructions import InstructionsConfig, encode_instructions
from tasks.validate.instructions import KEPT

COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)
LONG = "a good film " * 40
SIZES = {"alpaca": 20, "wiki": 10, "dolly": 9}


def config(**changes) -> InstructionsConfig:
    rows = {"train": None, "validation": None, "test": None}
    return InstructionsConfig(**{"max_tokens": 64, "weights": {}, "rows": rows, "batch_rows": 7, **changes})


def conversation(n: int) -> list[dict]:
    turns = [{"role": "user", "content": f"Count to {n}."}, {"role": "assistant", "content": f"{n} it is."}]
    more = [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "Done."}]
    return turns + (more if n % 5 == 0 else [])


def a_row(n: int, source: str, messages: list[dict]) -> dict:
    # the golden ratio scatters the ids, so that file order is not their order
    row_id = f"{((n + 100 * len(source)) * 0x9E3779B97F4A7C15) % 2**64:016x}"
    return {"row_id": row_id, "messages": messages, "category": f"kind {n % 3}", "source": source,
            "location": f"data/x/{source}.json:{n + 1}"}  # fmt: skip


def write(folder: Path, splits: dict[str, list[dict]]) -> Path:
    folder.mkdir(exist_ok=True)
    for split in SPLITS:
        pq.write_table(pa.Table.from_pylist(splits[split], schema=KEPT), folder / f"{split}.parquet")
    (folder / "validation.json").write_text('{"set": "x"}')
    return folder


@pytest.fixture(scope="module")
def validated(tmp_path_factory) -> Path:
    rows = []
    for source, size in SIZES.items():
        for n in range(size):
            text = [{"role": "text", "content": f"A film of {n} people. " * 3}]
            rows.append(a_row(n, source, text if source == "wiki" else conversation(n)))
    return write(tmp_path_factory.mktemp("made") / "x", {split: rows for split in SPLITS})


@pytest.fixture(scope="module")
def base(tiny_decoder: Path) -> Path:
    return tiny_decoder


def read(out: Path, split: str) -> list[dict]:
    return pq.read_table(out / f"{split}.parquet").to_pylist()


def test_rows_by_hand(validated, base, tmp_path) -> None:
    report = encode_instructions(config(), COMPUTE, validated, base, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = read(tmp_path / "out", "train")
    given = read(validated, "train")
    assert [row["row_id"] for row in rows] == [row["row_id"] for row in given]
    for row, source in zip(rows, given, strict=True):
        found = chat.segments(tokenizer, source["messages"])
        assert row["input_ids"] == [token for ids, _ in found for token in ids]
        trained = [label for label in row["labels"] if label != -100]
        wanted = [token for ids, trained in found if trained for token in ids]
        assert trained == (wanted[1:] if source["source"] == "wiki" else wanted)  # nothing predicts a first token
        assert row["labels"][0] == -100 and len(row["labels"]) == len(row["input_ids"]) == row["length"]
        assert row["reference"] == source["messages"][-1]["content"]
        assert {key: row[key] for key in ("category", "source", "location")} == {
            key: source[key] for key in ("category", "source", "location")
        }
        if source["source"] == "wiki":
            assert row["prompt_tokens"] == 0
        else:
            prompt = chat.prompt_ids(tokenizer, source["messages"][:-1])
            assert row["input_ids"][: row["prompt_tokens"]] == prompt
    assert report == json.loads((tmp_path / "out/encoding.json").read_text())
    split = report["splits"]["train"]
    assert (report["set"], split["rows"], split["sources"]) == ("x", 39, dict(sorted(SIZES.items())))
    assert split["tokens"] == sum(len(row["input_ids"]) for row in rows)
    assert split["trained_tokens"] == sum(label != -100 for row in rows for label in row["labels"])
    assert split["percentiles"]["100"] == max(row["length"] for row in rows)
    assert (split["rows_prompt_cut"], split["rows_response_cut"], split["tokens_cut"]) == (0, 0, 0)
    assert split["rows_dropped"] == {"unfit": 0, "unwritable": 0}


def test_only_training_holds_general_text(validated, base, tmp_path) -> None:
    encode_instructions(config(), COMPUTE, validated, base, tmp_path / "out")
    for split in ("validation", "test"):
        assert Counter(row["source"] for row in read(tmp_path / "out", split)) == {"alpaca": 20, "dolly": 9}


def test_a_mixture_repeats_and_thins_the_train_split_alone(validated, base, tmp_path) -> None:
    weights = {"alpaca": 0.5, "wiki": 2.3, "dolly": 1.0}
    encode_instructions(config(weights=weights), COMPUTE, validated, base, tmp_path / "out")
    train = Counter((row["source"], row["row_id"]) for row in read(tmp_path / "out", "train"))
    ids = {source: sorted(row["row_id"] for row in read(validated, "train") if row["source"] == source)
           for source in SIZES}  # fmt: skip
    wanted = {("alpaca", row_id): 1 for row_id in ids["alpaca"][:10]}
    wanted |= {("wiki", row_id): 2 + (place < 3) for place, row_id in enumerate(ids["wiki"])}
    wanted |= {("dolly", row_id): 1 for row_id in ids["dolly"]}
    assert train == wanted
    for split in ("validation", "test"):
        assert Counter(row["source"] for row in read(tmp_path / "out", split)) == {"alpaca": 20, "dolly": 9}


def test_weight_0_leaves_a_source_out_everywhere_and_limits_take_the_lowest_ids(validated, base, tmp_path) -> None:
    limits = {"train": 12, "validation": 3, "test": None}
    encode_instructions(config(weights={"dolly": 0}, rows=limits), COMPUTE, validated, base, tmp_path / "out")
    ids = {source: [row["row_id"] for row in read(validated, "train") if row["source"] == source] for source in SIZES}
    assert sorted(row["row_id"] for row in read(tmp_path / "out", "train")) == sorted(ids["alpaca"] + ids["wiki"])[:12]
    assert sorted(row["row_id"] for row in read(tmp_path / "out", "validation")) == sorted(ids["alpaca"])[:3]
    assert [row["row_id"] for row in read(tmp_path / "out", "test")] == ids["alpaca"]


def test_two_runs_and_other_batches_write_the_same_bytes(validated, base, tmp_path) -> None:
    made = []
    for name, batch_rows in (("one", 7), ("two", 100)):
        changed = config(batch_rows=batch_rows, weights={"alpaca": 1.5})
        encode_instructions(changed, COMPUTE, validated, base, tmp_path / name)
        made.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert made[0] == made[1] and len(made[0]) == 4


@pytest.fixture(scope="module")
def long_rows(tmp_path_factory) -> Path:
    question, answer = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
    rows = [
        a_row(0, "a", [question, answer]),
        a_row(1, "a", [{"role": "user", "content": LONG}, answer]),
        a_row(2, "a", [question, {"role": "assistant", "content": LONG}]),
        a_row(3, "a", [{"role": "user", "content": "What is <|im_end|>?"}, answer]),
    ]
    return write(tmp_path_factory.mktemp("made") / "x", {split: rows for split in SPLITS})


def test_what_is_cut_or_dropped_is_counted_and_named(long_rows, base, tmp_path, capsys) -> None:
    report = encode_instructions(config(max_tokens=48), COMPUTE, long_rows, base, tmp_path / "out")["splits"]["test"]
    rows = read(tmp_path / "out", "test")
    assert [row["location"][-1] for row in rows] == ["1", "2", "3"]
    assert (report["rows_prompt_cut"], report["rows_response_cut"]) == (1, 1)
    assert report["tokens_cut"] == sum(row["length"] - len(row["input_ids"]) for row in rows) > 0
    assert report["rows_dropped"] == {"unfit": 0, "unwritable": 1}
    assert [len(row["input_ids"]) for row in rows[1:]] == [48, 48]
    end = AutoTokenizer.from_pretrained(base).eos_token_id
    assert [row["labels"][-1] == end for row in rows] == [True, True, False]
    error = capsys.readouterr().err
    assert "test: cut to 48 tokens, 1 prompts lost their beginning and 1 responses or texts their end" in error
    assert "1 rows of test dropped; first: data/x/a.json:4: message 1 holds `<|im_end|>`" in error


def test_mistakes_are_named(validated, base, tmp_path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="no source `wikki` to weigh: sources are alpaca, dolly, wiki"):
        encode_instructions(config(weights={"wikki": 2}), COMPUTE, validated, base, out)
    with pytest.raises(UsageError, match="weights.wiki is -1.0: it must be 0 or more"):
        encode_instructions(config(weights={"wiki": -1}), COMPUTE, validated, base, out)
    with pytest.raises(UsageError, match="tokenizer.json is missing: run `dvc repro base_decoder`"):
        encode_instructions(config(), COMPUTE, validated, tmp_path, out)
    with pytest.raises(UsageError, match="max_tokens is 4096, but the base reads 512"):
        encode_instructions(config(max_tokens=4096), COMPUTE, validated, base, out)
    with pytest.raises(UsageError, match="train.parquet is missing"):
        encode_instructions(config(), COMPUTE, tmp_path, base, out)
    with pytest.raises(DataError, match="validation.parquet has no rows to encode"):
        encode_instructions(config(weights={"alpaca": 0, "dolly": 0}), COMPUTE, validated, base, out)


# --- what people see ------------------------------------------------------------------------------------------------


def test_the_spans_are_the_whole_text_and_the_trained_ones_the_responses(validated, base, tmp_path) -> None:
    encode_instructions(config(), COMPUTE, validated, base, tmp_path / "out")
    masked = read_masked(tmp_path / "out", base, "train", 2)
    assert [row.row_id for row in masked] == [row["row_id"] for row in read(validated, "train")[:2]]
    assert [text for text, trained in masked[0].spans if trained] == ["0 it is.<|im_end|>", "Done.<|im_end|>"]
    assert masked[0].spans[0] == ("<|im_start|>user\nCount to 0.<|im_end|>\n<|im_start|>assistant\n", False)
    assert masked[1].caption().startswith(f"{masked[1].row_id}  data/x/alpaca.json:2  ")
    assert as_html([("a <b>\n", False), ("c & d", True)]) == (
        '<span class="prompt">a &lt;b&gt;\n</span><span class="trained">c &amp; d</span>'
    )


def show_mask(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ajuste.cli.main", "show-mask", *options]
    return subprocess.run(command, cwd=folder, capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": str(ROOT), **environment})  # fmt: skip


@pytest.fixture(scope="module")
def project(long_rows, base, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    encode_instructions(config(max_tokens=48), COMPUTE, long_rows, base, folder / "artifacts/encoded/instructions")
    (folder / "artifacts/base").mkdir()
    (folder / "artifacts/base/decoder").symlink_to(base)
    return folder


def test_show_mask_without_a_terminal_marks_what_is_trained(project) -> None:
    shown = show_mask(project, "--split", "test", "--rows", "2")
    assert shown.returncode == 0, shown.stderr
    assert "[[So.<|im_end|>]]" in shown.stdout and "\x1b" not in shown.stdout
    assert "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n[[" in shown.stdout
    assert "more were cut" in shown.stdout and "instructions, test: what is trained stands in [[ ]]" in shown.stdout


def test_show_mask_on_a_terminal_colours_it(project) -> None:
    shown = show_mask(project, "--rows", "1", FORCE_COLOR="1")
    assert "\x1b[1;32mSo.<|im_end|>\x1b[0m" in shown.stdout and "[[" not in shown.stdout


def test_show_mask_names_what_is_missing(project, tmp_path) -> None:
    for options, named in (
        (("--set", "none"), "artifacts/encoded/none/train.parquet is missing: run `dvc repro encode_none`"),
        (("--split", "tests"), "there is no split `tests`: splits are train, validation, test"),
    ):
        shown = show_mask(project, *options)
        assert shown.returncode == 2 and shown.stderr == f"error: {named}\n"
    (tmp_path / "artifacts/encoded").mkdir(parents=True)
    assert "run `dvc repro encode_instructions`" in show_mask(tmp_path).stderr
