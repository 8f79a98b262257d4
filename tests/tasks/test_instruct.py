"""Every method on a tiny decoder: that it learns, what it saves, that it resumes bit for bit, and what is refused."""

import json
import math
import os
import shutil
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from learning import bottleneck, chat, decoder, lora, methods, quantize, ragged
from learning.classifier import sha256_of
from learning.generate import generate
from tasks import _train
from tasks._conversations import read_conversations
from tasks._stage import Compute, DataError, UsageError
from tasks.instruct import InstructConfig, instruct
from tests.tiny_decoders import tiny_base

COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)
CONFIG = InstructConfig(
    method="lora",
    r=4,
    alpha=8,
    lora_dropout=0.0,
    targets=["all-linear"],
    virtual_tokens=4,
    bottleneck_width=8,
    dtype="float32",
    lr=1e-2,
    warmup=0.1,
    epochs=2,
    batch_rows=8,
    accumulation=1,
    weight_decay=0.01,
    l2_to_w0=0.0,
    max_grad_norm=1.0,
    evaluations=2,
    patience=3,
)
RATES = {"full": 3e-3, "prefix": 0.1, "prompt": 0.1, "bottleneck": 3e-2}
SUBJECTS = ["film", "plot", "scene", "actor", "story", "cast", "script", "ending"]
JUDGED = [("good", "bad"), ("warm", "cold"), ("slow", "fast"), ("dull", "funny")]


def of(method: str, **changes) -> InstructConfig:
    """The settings of these tests with another method: what they change is checked as at any other place."""
    return InstructConfig(**{**CONFIG.model_dump(), "method": method, **changes})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base") / "decoder")


@pytest.fixture(scope="module")
def encoded(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """44 training and 12 validation rows of unequal length: "Is the film good or bad?" -> "The film is good."."""
    folder, tokenizer = tmp_path_factory.mktemp("set"), decoder.load_base(base)[1]
    asked = [
        (f"Is the {subject} {left} or {right}?" + " Please tell me." * (number % 3), f"The {subject} is {left}.")
        for number, (subject, (left, right)) in enumerate((s, j) for s in SUBJECTS for j in [*JUDGED, JUDGED[0][::-1]])
    ]
    asked += [(f"What about the {subject}?", "I do not know.") for subject in SUBJECTS * 2]
    for split, part in (("train", asked[:44]), ("validation", asked[44:])):
        rows = []
        for number, (question, answer) in enumerate(part):
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            (prompt, _), (response, _) = chat.segments(tokenizer, turns)
            ids = prompt + response
            rows.append(
                {
                    "row_id": f"{number:016x}",
                    "input_ids": ids,
                    "labels": [-100] * len(prompt) + response,
                    "prompt_tokens": len(prompt),
                }
            )
        kinds = pa.schema(
            {
                "row_id": pa.string(),
                "input_ids": pa.list_(pa.int32()),
                "labels": pa.list_(pa.int32()),
                "prompt_tokens": pa.int32(),
            }
        )
        pq.write_table(pa.Table.from_pylist(rows, schema=kinds), folder / f"{split}.parquet")
    (folder / "encoding.json").write_text('{"max_tokens": 64, "set": "instructions"}')
    return folder


def run(config: InstructConfig, encoded: Path, base: Path, folder: Path) -> dict:
    """One training in `folder`/out with checkpoints in `folder`/checkpoints."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    return instruct(config, COMPUTE, encoded, base, folder / "out", folder / "checkpoints")


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def history(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def pairs(encoded: Path, split: str = "validation") -> list:
    return list(read_conversations(encoded, split))


def logits(model, rows: list) -> torch.Tensor:
    """Of a padded batch, in eval mode: [B, T, V] with padding set to 0."""
    batch = ragged.padded(rows, pad_id=0)
    with torch.no_grad():
        out = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    out = out[:, -batch["input_ids"].shape[1] :]  # prompt tuning answers at its own tokens too
    return out * batch["attention_mask"][..., None]


# --- every method ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_learns_saves_reloads_evaluates_and_answers(
    method: str, encoded: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    def watched(model, *rest) -> list[dict]:
        trained.append(model)
        return _train.train(model, *rest)

    monkeypatch.setattr("tasks.instruct.train", watched)
    card = run(of(method, epochs=4, lr=RATES.get(method, 1e-2), patience=20), encoded, base, tmp_path)
    rows, out = pairs(encoded), tmp_path / "out"

    # it learns: the held-out loss falls below that of where it started
    plain, tokenizer = decoder.load_base(base)
    nll, tokens = ragged.row_losses(plain, rows, 500).sum(0).tolist()
    assert card["validation"]["loss"] < (0.999 if method in methods.VIRTUAL else 0.9) * nll / tokens
    assert card["validation"]["perplexity"] == pytest.approx(math.exp(card["validation"]["loss"]))

    # what was saved is what was trained
    assert decoder.is_adapter(out) == (method != "full")
    model, tokenizer, saved = decoder.load(out, base)
    assert torch.allclose(logits(model, rows), logits(trained[0], rows), atol=1e-5)
    assert saved == {key: value for key, value in card.items() if key not in ("tokens", "train_seconds")}
    assert saved["mergeable"] == (method in methods.MERGEABLE)
    assert saved["quantisation"] == methods.QUANTISATION.get(method)

    # it evaluates as it did while it trained, also on batches without padding
    for current in (model, model if method in methods.VIRTUAL else ragged.attach(model)):
        nll, tokens = ragged.row_losses(current, rows, 500).sum(0).tolist()
        assert nll / tokens == pytest.approx(card["validation"]["loss"], rel=1e-5)

    # and it answers: greedily, as the argmax of its own logits says
    prompts = [[int(token) for token in ids[labels == -100]] for ids, labels in rows[:4]]
    answers = generate(model, prompts, 6, chat.end_of_turn(tokenizer), tokenizer.pad_token_id)
    for prompt, answer in zip(prompts, answers, strict=True):
        whole = [*prompt, *answer]
        best = logits(model, [(whole, whole)])[0].argmax(-1).tolist()
        assert best[len(prompt) - 1 : -1] == answer and answer

    if method in methods.MERGEABLE:  # into the base that it was trained on
        kind = saved["quantisation"]
        start = quantize.dequantised_base(base, kind) if kind else decoder.load_base(base)[0]
        merged = lora.merge(decoder.put_on(start, out))
        assert (logits(merged, rows) - logits(model, rows)).abs().max() < 1e-4


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
    assert card["validation"]["loss"] == min(row["eval_loss"] for row in evaluations)
    assert len(evaluations) < 12 and evaluations[-1]["eval_loss"] > card["validation"]["loss"]
    model, _, _ = decoder.load(tmp_path / "out", base)
    nll, tokens = ragged.row_losses(model, pairs(encoded), 500).sum(0).tolist()
    assert nll / tokens == pytest.approx(card["validation"]["loss"], rel=1e-5)


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
        assert other[0] == pytest.approx(losses[0][0], rel=1e-6)
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


# --- quantised bases -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["qlora", "qlora8"])
def test_gradients_after_an_evaluation_equal_those_before_one(method: str, dtype, encoded: Path, base: Path) -> None:
    rows = pairs(encoded, "train")[:8]
    torch.manual_seed(0)
    model = methods.attach(methods.load_base(base, method, dtype), of(method).settings())
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_(std=0.05)  # B is no longer zero, so that A learns too
    ragged.attach(model)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model.train()
        ragged.response_loss(model, ragged.collate(rows)).backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    before = gradients()
    packed = {name: p.data.clone() for name, p in model.named_parameters() if not p.requires_grad}
    held_out = ragged.row_losses(model, rows, 300)
    generate(model, [rows[0][0][:5]], 4, [], 0)
    assert all(torch.equal(left, right) for left, right in zip(before, gradients(), strict=True))
    assert all(torch.equal(packed[name], p.data) for name, p in model.named_parameters() if name in packed)
    assert torch.equal(held_out, ragged.row_losses(model, rows, 300))
    assert max(gradient.abs().max() for gradient in before) > 0


@pytest.mark.parametrize(("method", "kind"), methods.QUANTISATION.items())
def test_the_dequantised_base_is_what_the_quantised_one_computes(
    method: str, kind: str, encoded: Path, base: Path, tmp_path: Path
) -> None:
    rows = pairs(encoded)
    quantised, plain = quantize.load(base, kind), quantize.dequantised_base(base, kind)
    assert (logits(quantised, rows) - logits(plain, rows)).abs().max() < 1e-5
    assert (logits(decoder.load_base(base)[0], rows) - logits(plain, rows)).abs().max() > 1e-3  # another model
    # the codes do not depend on the dtype that the base is loaded in
    codes = []
    for dtype in (torch.float32, torch.bfloat16):
        parameters = quantize.load(base, kind, dtype).parameters()
        codes.append([p.data for p in parameters if p.dtype in (torch.uint8, torch.int8)])
    assert len(codes[0]) == 28 and all(torch.equal(a, b) for a, b in zip(*codes, strict=True))
    decoder.save_whole(plain, decoder.load_base(base)[1], tmp_path, {"kind": "decoder"})
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(logits(decoder.load(tmp_path)[0], rows), logits(plain, rows))


def test_nf4_is_the_nearest_of_sixteen_levels_of_each_64_weights(base: Path) -> None:
    """An independent NF4: levels of the paper's table, absolute maximum a block (its 8 bits within 1 %)."""
    levels = torch.tensor(
        [-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0, 0.0795803,
         0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]
    )  # fmt: skip
    name = "model.layers.0.mlp.up_proj.weight"
    W0 = load_file(base / "model.safetensors")[name].float().reshape(-1, 64)
    a = W0.abs().amax(1, keepdim=True)
    nearest = levels[((W0 / a)[..., None] - levels).abs().argmin(-1)] * a
    W = dict(quantize.dequantised_base(base, "nf4").named_parameters())[name].reshape(-1, 64)
    assert ((W - nearest).abs() / a).max() < 0.02
    assert (W - W0).abs().max() > 0.01 * a.max()


# --- kill and resume -------------------------------------------------------------------------------------------------


class Killed(Exception):
    """Stands for the end of the process in a test."""


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("lora", {"lora_dropout": 0.1}),
        ("lora", {"accumulation": 4, "dtype": "bfloat16"}),
        ("full", {"dtype": "bfloat16", "accumulation": 2, "l2_to_w0": 0.01, "lr": 1e-3}),
        ("qlora", {"dtype": "bfloat16"}),
        ("prefix", {}),
        ("bottleneck", {"dtype": "bfloat16"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "plain",
)
def test_a_killed_run_ends_with_the_bytes_of_an_undisturbed_one(
    method: str, changes: dict, encoded: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the first epoch, and in the second, and while a checkpoint is being written."""
    config = of(method, **changes)
    run(config, encoded, base, tmp_path / "calm")
    on_step_end, seal = _train._Follow.on_step_end, _train.seal

    def stop_at(step: int):
        def hook(self, args, state, control, **kwargs):
            on_step_end(self, args, state, control, **kwargs)
            if state.global_step == step:
                raise Killed

        return hook

    def torn(folder: Path) -> None:
        if folder.name == "checkpoint-9":
            raise Killed
        seal(folder)

    for step in (5, 8):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(_train._Follow, "on_step_end", stop_at(step))
            run(config, encoded, base, tmp_path / "killed")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(_train, "seal", torn)
        run(config, encoded, base, tmp_path / "killed")
    assert (tmp_path / "killed" / "checkpoints" / "checkpoint-6" / "COMPLETE").is_file()
    run(config, encoded, base, tmp_path / "killed")
    assert files(tmp_path / "killed" / "out") == files(tmp_path / "calm" / "out")


def test_a_signal_leaves_a_checkpoint_and_the_next_run_goes_on(
    encoded: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(CONFIG, encoded, base, tmp_path / "calm")
    begin = _train._Follow.on_step_begin

    def at_step_five(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        begin(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_train._Follow, "on_step_begin", at_step_five)
        run(CONFIG, encoded, base, tmp_path / "stopped")
    assert (tmp_path / "stopped" / "checkpoints" / "checkpoint-6" / "COMPLETE").is_file()
    run(CONFIG, encoded, base, tmp_path / "stopped")
    assert files(tmp_path / "stopped" / "out") == files(tmp_path / "calm" / "out")


def test_a_checkpoint_holds_the_trained_weights_and_no_others(encoded: Path, base: Path, tmp_path: Path) -> None:
    run(of("bottleneck", epochs=1), encoded, base, tmp_path)
    checkpoint = max((tmp_path / "checkpoints").glob("checkpoint-*"))
    weights = load_file(checkpoint / "trained.safetensors")
    assert weights and all(".bottleneck." in name for name in weights)


# --- the guard -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(encoded: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guarded")
    run(of("lora", epochs=1), encoded, base, folder)
    return folder / "out"


def other(base: Path, folder: Path, *parts: str) -> Path:
    """A copy of the base that differs in the named parts; its base.json is left as it was."""
    shutil.copytree(base, folder)
    if "weights" in parts:
        model, _ = decoder.load_base(base, torch.bfloat16)
        model.model.norm.weight.data[0] += 1
        model.save_pretrained(folder)
    if "tokenizer" in parts:
        path = folder / "tokenizer.json"
        path.write_text(path.read_text().replace('"<|im_start|>"', '"<|im_begin|>"'))
    if "chat template" in parts:
        path = folder / "chat_template.jinja"
        path.write_text(path.read_text().replace("<|im_start|>", "<|im_start|> "))
    return folder


@pytest.mark.parametrize("part", ["weights", "tokenizer", "chat template"])
def test_an_adapter_is_refused_by_a_base_that_differs_in_one_part(
    part: str, adapter: Path, base: Path, tmp_path: Path
) -> None:
    decoder.load(adapter, base)
    with pytest.raises(ValueError) as refused:
        decoder.load(adapter, other(base, tmp_path / "other", part))
    message = str(refused.value)
    assert message.count("sha256") == 1 and f"differs in its {part} (sha256 " in message
    assert "\n" not in message and "was trained on base tiny" in message


def test_all_that_differs_is_named(adapter: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"its weights \(.*\) and its tokenizer \(.*\) and its chat template \("):
        decoder.load(adapter, other(base, tmp_path / "other", "weights", "tokenizer", "chat template"))


def test_what_is_no_decoder_is_refused_in_one_line(adapter: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds an adapter, which needs its base tiny"):
        decoder.load(adapter)
    with pytest.raises(ValueError, match="ajuste.json is missing"):
        decoder.load(tmp_path)
    with pytest.raises(ValueError, match="base.json is missing: run stage `base_decoder`"):
        decoder.identity_of(tmp_path)
    (tmp_path / "ajuste.json").write_text('{"task": "sequence"}')
    with pytest.raises(ValueError, match="holds no decoder but a sequence model"):
        decoder.load(tmp_path)
    shutil.copytree(adapter, tmp_path / "torn")
    weights = load_file(adapter / "adapter_model.safetensors")
    cut = {name: tensor[:, :-1].contiguous() for name, tensor in weights.items()}
    save_file(cut, tmp_path / "torn" / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="does not fit its base"):
        decoder.load(tmp_path / "torn", base)


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
