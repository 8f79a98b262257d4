"""Instruction fine-tuning of a tiny decoder: what is saved, the loss, that it resumes bit for bit, what is refused.

That every method goes the whole way, from training to an answer of the server, is tested in tests/test_methods.py.
"""

import json
import math
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from ajuste.core.errors import DataError, UsageError
from ajuste.core.figures import rounded
from ajuste.learning import lora
from ajuste.learning.layers import bottleneck, ragged
from ajuste.models import decoder, methods
from ajuste.models.folder import sha256_of
from tasks.merge.decoder import DecoderConfig, merge_decoder
from tests.made.killed import die_thrice, interrupt
from tests.made.tuned import COMPUTE, CONFIG, files, history, logits, of, pairs, run

# --- methods ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "bottleneck"])
@pytest.mark.parametrize("family", ["gpt2", "bloom"])
def test_other_architectures(family: str, method: str, encoded: Path, base: Path, tmp_path: Path) -> None:
    """GPT-2 keeps its matrices transposed; BLOOM has no positions and an attention that takes only padded batches."""
    own = shutil.copytree(base, tmp_path / "base")
    size = {"vocab_size": decoder.load_base(base)[0].config.vocab_size, "n_layer": 2, "n_head": 2}
    torch.manual_seed(0)
    if family == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_positions=512, **size))
    else:
        model = BloomForCausalLM(BloomConfig(hidden_size=32, **size))
    model.save_pretrained(own)
    identity = json.loads((own / "base.json").read_text()) | {"sha256": sha256_of(own / "model.safetensors")}
    (own / "base.json").write_text(json.dumps(identity))
    card = run(of(method, epochs=1), encoded, own, tmp_path)
    model = decoder.load(tmp_path / "out", own)[0]
    nll, tokens = ragged.row_losses(model, pairs(encoded), 500).sum(0).tolist()
    assert nll / tokens == pytest.approx(card["validation"]["loss"], rel=1e-5)
    assert nll / tokens < math.log(size["vocab_size"])
    if method == "lora":
        rows = pairs(encoded)
        before = logits(model, rows)
        assert (logits(lora.merge(model), rows) - before).abs().max() < 1e-4


@pytest.mark.parametrize("method", methods.METHODS)
def test_trained_weights_are_as_many_as_the_formula_says(method: str, base: Path) -> None:
    config = decoder.load_base(base)[0].config
    n, d, m, kv = config.num_hidden_layers, config.hidden_size, config.intermediate_size, 2 * 32
    shapes = [(d, d), (kv, d), (kv, d), (d, d), (m, d), (m, d), (d, m)]  # q k v o gate up down, out x in
    A_and_B = n * sum(lora.parameters(4, rows, columns) for rows, columns in shapes)
    expected = {
        "full": config.vocab_size * d + n * (sum(a * b for a, b in shapes) + 2 * d) + d,
        "dora": A_and_B + n * sum(rows for rows, _ in shapes),
        "prefix": 4 * n * 2 * kv,
        "prompt": 4 * d,
        "bottleneck": bottleneck.parameters(2 * n, d, 8),
    }
    model = methods.attach(methods.load_base(base, method, torch.float32), of(method).settings())
    counted = methods.count_parameters(model)
    assert counted["trainable"] == expected.get(method, A_and_B)
    assert counted["total"] == expected["full"] + (0 if method == "full" else counted["trainable"])
    only_q = methods.Settings("lora", r=2, targets=("q_proj",))
    small = methods.attach(methods.load_base(base, "lora", torch.float32), only_q)
    assert methods.count_parameters(small)["trainable"] == n * 2 * (d + d)


@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "bottleneck", "full"])
def test_at_the_start_it_is_its_base_bit_for_bit(method: str, encoded: Path, base: Path) -> None:
    rows = pairs(encoded)
    expected = logits(decoder.load_base(base)[0], rows)
    model = methods.attach(methods.load_base(base, method, torch.float32), of(method).settings())
    assert torch.equal(logits(model, rows), expected) or method == "dora"
    assert torch.allclose(logits(model, rows), expected, atol=1e-5)


def test_a_prefix_starts_as_its_tokens_in_front_of_the_row(base: Path) -> None:
    torch.manual_seed(5)
    model, n = decoder.load_base(base)[0], 4
    tokens = torch.randint(model.config.vocab_size, (1, n))
    row = torch.arange(20, 29)[None]
    with torch.no_grad():
        expected = model(torch.cat([tokens, row], dim=1)).logits[:, n:]
        torch.manual_seed(5)
        prefixed = methods.attach(model, methods.Settings("prefix", virtual_tokens=n)).eval()
        assert torch.allclose(prefixed(row, attention_mask=torch.ones_like(row)).logits, expected, atol=1e-4)


# --- what is saved ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "prefix", "bottleneck"])
def test_a_folder_names_no_path_and_two_runs_give_the_same_bytes(
    method: str, encoded: Path, base: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        run(of(method, dtype="bfloat16", epochs=1), encoded, base, tmp_path / name)
    assert files(tmp_path / "a" / "out") == files(tmp_path / "b" / "out")
    for name, content in files(tmp_path / "a" / "out").items():
        assert str(tmp_path).encode() not in content and str(base).encode() not in content, name
    names = {path.name for path in (tmp_path / "a" / "out").iterdir()}
    assert {"ajuste.json", "history.jsonl", "tokenizer.json"} <= names and "README.md" not in names
    config = bottleneck.CONFIG if method == "bottleneck" else "adapter_config.json"
    written = json.loads((tmp_path / "a" / "out" / config).read_text())
    assert written["base_model_name_or_path"] == "tiny"
    if method == "lora":
        assert written["target_modules"] == sorted(written["target_modules"])
    if method == "bottleneck":
        assert "PEFT has no such adapter and cannot load this folder" in written["note"]
    weights = next((tmp_path / "a" / "out").glob("*.safetensors"))
    assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.float32}  # beside a bfloat16 base


def test_the_best_evaluation_is_the_one_of_the_lowest_loss(encoded: Path, base: Path, tmp_path: Path) -> None:
    card = run(of("lora", lr=0.5, epochs=6, patience=2), encoded, base, tmp_path)  # a rate that spoils the model
    evaluations = [row for row in history(tmp_path / "out") if "eval_loss" in row]
    assert rounded(card["validation"]["loss"]) == min(row["eval_loss"] for row in evaluations)
    assert len(evaluations) < 12 and evaluations[-1]["eval_loss"] > card["validation"]["loss"]
    model, _, _ = decoder.load(tmp_path / "out", base)
    nll, tokens = ragged.row_losses(model, pairs(encoded), 500).sum(0).tolist()
    assert nll / tokens == pytest.approx(card["validation"]["loss"], rel=1e-5)


def test_a_base_that_follows_instructions_already_goes_on_as_it_came(encoded: Path, base: Path, tmp_path: Path) -> None:
    """Method `none`: the base's own weights, its own held-out loss, and the merge copies them and says why."""
    card = run(of("none"), encoded, base, tmp_path)
    before, out = decoder.load_base(base)[0], tmp_path / "out"
    after = decoder.load(out)[0].state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.state_dict().items())
    assert (card["method"], card["parameters"]["trainable"], card["tokens"]) == ("none", 0, 0)
    nll, tokens = ragged.row_losses(before, pairs(encoded), 500).sum(0).tolist()
    assert card["validation"]["loss"] == pytest.approx(nll / tokens, rel=1e-5)
    assert json.loads((out / "history.jsonl").read_text())["eval_loss"] == pytest.approx(nll / tokens, rel=1e-5)
    merge = DecoderConfig(dtype="float32", max_logit_difference=1e-4, min_equal_tokens=1.0, rows=2, prompts=2,
                          new_tokens=2)  # fmt: skip
    proof = merge_decoder(merge, COMPUTE, out, base, encoded, tmp_path / "merged")
    assert proof == {"merged": False, "why": "no weight was trained, which has nothing to merge"}
    run(of("none"), encoded, base, tmp_path / "again")
    assert files(out) == files(tmp_path / "again/out")


def test_trained_tokens_are_counted(encoded: Path, base: Path, tmp_path: Path) -> None:
    learnt = sum(int((labels != -100).sum()) for _, labels in pairs(encoded, "train"))
    assert run(of("lora", patience=9), encoded, base, tmp_path)["tokens"] == 2 * learnt


# --- the loss --------------------------------------------------------------------------------------------------------


def test_accumulation_changes_nothing(encoded: Path, base: Path, tmp_path: Path) -> None:
    """8x1 == 4x2 == 1x8 on rows of unequal length: the same loss in every step."""
    losses = []
    for pieces in (1, 2, 8):
        run(of("full", accumulation=pieces, lr=1e-3, l2_to_w0=1e-3), encoded, base, tmp_path / str(pieces))
        losses.append([row["loss"] for row in history(tmp_path / str(pieces) / "out") if "loss" in row])
    for other in losses[1:]:
        assert other[0] == pytest.approx(losses[0][0], rel=1e-5)
        assert other == pytest.approx(losses[0], rel=1e-4)


def test_the_penalty_holds_the_weights_where_they_were(encoded: Path, base: Path, tmp_path: Path) -> None:
    start = load_file(base / "model.safetensors")
    moved, first = [], []
    for strength in (0.0, 1.0, 100.0):
        folder = tmp_path / str(strength)
        run(of("full", lr=1e-3, l2_to_w0=strength, max_grad_norm=1e6), encoded, base, folder)
        W = load_file(folder / "out" / "model.safetensors")
        moved.append(sum((W[name] - start[name].float()).pow(2).sum().item() for name in W))
        first.append(history(folder / "out")[0]["loss"])
    assert moved[0] > 1.2 * moved[1] > 2 * moved[2]
    assert first[0] == first[1] == first[2]  # at W0 it costs nothing


# --- kill and resume -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        pytest.param("lora", {"lora_dropout": 0.1}, marks=pytest.mark.slow),
        ("lora", {"accumulation": 4, "dtype": "bfloat16"}),
        pytest.param(
            "full", {"dtype": "bfloat16", "accumulation": 2, "l2_to_w0": 0.01, "lr": 1e-3}, marks=pytest.mark.slow
        ),
        ("qlora", {"dtype": "bfloat16"}),
        pytest.param("prefix", {}, marks=pytest.mark.slow),
        pytest.param("bottleneck", {"dtype": "bfloat16"}, marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "plain",
)
def test_a_killed_run_ends_with_the_bytes_of_an_undisturbed_one(
    method: str, changes: dict, encoded: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the first epoch, and in the second, and while a checkpoint is being written."""
    config = of(method, **changes)
    run(config, encoded, base, tmp_path / "calm")
    die_thrice(lambda: run(config, encoded, base, tmp_path / "killed"), (5, 8), "checkpoint-9", monkeypatch)
    assert (tmp_path / "killed" / "checkpoints" / "checkpoint-6" / "COMPLETE").is_file()
    run(config, encoded, base, tmp_path / "killed")
    assert files(tmp_path / "killed" / "out") == files(tmp_path / "calm" / "out")


def test_a_signal_leaves_a_checkpoint_and_the_next_run_goes_on(
    encoded: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(CONFIG, encoded, base, tmp_path / "calm")
    interrupt(lambda: run(CONFIG, encoded, base, tmp_path / "stopped"), 5, monkeypatch)
    assert (tmp_path / "stopped" / "checkpoints" / "checkpoint-6" / "COMPLETE").is_file()
    run(CONFIG, encoded, base, tmp_path / "stopped")
    assert files(tmp_path / "stopped" / "out") == files(tmp_path / "calm" / "out")


def test_a_checkpoint_holds_the_trained_weights_and_no_others(encoded: Path, base: Path, tmp_path: Path) -> None:
    run(of("bottleneck", epochs=1), encoded, base, tmp_path)
    checkpoint = max((tmp_path / "checkpoints").glob("checkpoint-*"))
    weights = load_file(checkpoint / "trained.safetensors")
    assert weights and all(".bottleneck." in name for name in weights)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_wrong_settings_are_named(encoded: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="Input should be 'full', 'lora'"):
        of("lorra")
    with pytest.raises(ValueError, match="method 'lorra' does not exist: full, lora"):
        methods.attach(decoder.load_base(base)[0], methods.Settings("lorra"))
    with pytest.raises(ValueError, match="batch_rows 8 cannot be cut into accumulation 3"):
        of("lora", accumulation=3)
    with pytest.raises(ValueError, match="method `lora` leaves them there: set it to 0"):
        of("lora", l2_to_w0=0.1)
    with pytest.raises(UsageError, match="no linear layer of the base is named nope: it has down_proj, gate_proj"):
        run(of("lora", targets=["q_proj", "nope"]), encoded, base, tmp_path / "a")
    with pytest.raises(UsageError, match="training diverged: the loss of step .* is no number: lower `lr`"):
        run(of("full", lr=1e30, max_grad_norm=1e30), encoded, base, tmp_path / "b")


def test_missing_inputs_are_named(encoded: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="train.parquet is missing: run stage `encode_instructions`"):
        run(CONFIG, tmp_path / "none", base, tmp_path / "a")
    with pytest.raises(UsageError, match="base.json is missing: run stage `base_decoder`"):
        run(CONFIG, encoded, tmp_path / "none", tmp_path / "b")
    broken = shutil.copytree(encoded, tmp_path / "classification")
    pq.write_table(pq.read_table(encoded / "train.parquet").drop_columns(["labels"]), broken / "train.parquet")
    with pytest.raises(UsageError, match="has no column `labels`: it holds no encoded instructions"):
        run(CONFIG, broken, base, tmp_path / "c")


def rewritten(encoded: Path, folder: Path, change) -> Path:
    """The encoded set with `change` applied to each row of the training split."""
    shutil.copytree(encoded, folder)
    table = pq.read_table(encoded / "train.parquet")
    rows = [changed for row in table.to_pylist() if (changed := change(dict(row)))]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), folder / "train.parquet")
    return folder


def test_rows_that_the_base_cannot_read_are_named(encoded: Path, base: Path, tmp_path: Path) -> None:
    def longer(row: dict) -> dict:
        if row["row_id"].endswith("07"):
            row |= {"input_ids": [20] * 510, "labels": [20] * 510}
        return row

    long = rewritten(encoded, tmp_path / "long", longer)
    run(of("lora", epochs=1, evaluations=1), long, base, tmp_path / "fits")
    with pytest.raises(UsageError, match="row 0+07 has 510 tokens and 4 virtual ones, but the base has 512 positions"):
        run(of("prefix"), long, base, tmp_path / "a")
    foreign = rewritten(encoded, tmp_path / "foreign", lambda row: row | {"input_ids": [40000] * len(row["input_ids"])})
    with pytest.raises(UsageError, match="row 0+ has token 40000, but the base knows .*: encode the set again"):
        run(CONFIG, foreign, base, tmp_path / "b")
    with pytest.raises(DataError, match="train.parquet has no rows"):
        run(CONFIG, rewritten(encoded, tmp_path / "empty", lambda row: None), base, tmp_path / "c")
    silent = rewritten(encoded, tmp_path / "silent", lambda row: row | {"labels": [-100] * len(row["labels"])})
    with pytest.raises(DataError, match="has no token to learn"):
        run(CONFIG, silent, base, tmp_path / "d")
