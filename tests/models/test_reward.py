"""The reward model: where it reads its score, what changes it and what must not, head, folders, plain transformers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from ajuste.learning.layers import fused, shared_prefix
from ajuste.learning.losses.bradley_terry import comparison_loss
from ajuste.learning.text import chat
from ajuste.models import decoder, reward
from ajuste.models.folder import sha256_of
from tests.made.tiny_rlhf import reward_adapter, reward_merged, whole

PROMPT = [1, 40, 41, 42, 43]
ROWS = [PROMPT + row for row in ([50, 51, 2], [60, 2], [50, 52, 53, 54, 55, 56, 2], [61, 62, 2])]
SETTINGS = reward.Settings(r=4, alpha=8)


@pytest.fixture(scope="module")
def sft(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole(base, tmp_path_factory.mktemp("sft") / "instruct", 3)


@pytest.fixture(scope="module")
def adapter(sft: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reward_adapter(sft, tmp_path_factory.mktemp("reward") / "adapter")


@pytest.fixture(scope="module")
def merged(sft: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reward_merged(sft, adapter, tmp_path_factory.mktemp("reward") / "merged")


def by_hand(model, row: list[int]) -> float:
    """w . h + b, of one row alone, without any of the code under test."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    with torch.no_grad():
        h = inner.model(torch.tensor([row]), use_cache=False).last_hidden_state[0, -1]
    return (reward.head(model).weight[0] @ h).item() + inner.reward_bias


def test_the_score_is_that_of_the_last_token_whatever_stands_beside_or_behind_the_row(sft: Path, adapter: Path) -> None:
    model, _, card = reward.load(adapter, sft)
    expected = torch.tensor([by_hand(model, row) for row in ROWS])
    assert card["bias"] == 0.25 and expected.std() > 0.1
    for tokens in (1, 20, 4096):
        assert torch.allclose(reward.score(model, ROWS, tokens), expected, atol=1e-5)
    width = max(map(len, ROWS))
    for junk in (0, 2, 77):  # padding tokens, one of which is the end of a turn
        ids = torch.tensor([row + [junk] * (width + 3 - len(row)) for row in ROWS])
        mask = torch.tensor([[1] * len(row) + [0] * (width + 3 - len(row)) for row in ROWS])
        with torch.no_grad():
            assert torch.allclose(model(input_ids=ids, attention_mask=mask).logits[:, 0], expected, atol=1e-5)


def test_the_query_changes_the_score(sft: Path, adapter: Path) -> None:
    model = reward.load(adapter, sft)[0]
    asked = reward.score(model, [[1, 40, 50, 2], [1, 41, 50, 2]])
    assert (asked[0] - asked[1]).abs() > 1e-3


def test_an_end_of_turn_is_read_and_not_taken_for_padding(sft: Path, adapter: Path) -> None:
    model, tokenizer, card = reward.load(adapter, sft)
    end = chat.end_of_turn(tokenizer)
    assert card["pad_id"] == tokenizer.pad_token_id == reward.padding_id(tokenizer) not in end
    with_end, without = reward.score(model, [[*PROMPT, 50, end[0]], [*PROMPT, 50]])
    assert (with_end - without).abs() > 1e-3


def test_a_common_prompt_is_read_once_and_gradients_are_those_of_padded_rows(sft: Path) -> None:
    torch.manual_seed(0)
    model = reward.build(sft, SETTINGS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    fused.fuse(model)
    found = []
    width = max(map(len, ROWS))
    padded = {
        "input_ids": torch.tensor([row + [0] * (width - len(row)) for row in ROWS]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ROWS]),
    }
    shared = reward.collate(model, ROWS)
    assert shared["input_ids"].shape[1] == len(PROMPT) + sum(len(row) - len(PROMPT) for row in ROWS)
    for rewards in (reward.rewards(model, shared), model(**padded).logits[:, 0]):
        model.zero_grad()
        loss = comparison_loss(rewards, torch.tensor([2, 2]))
        loss.backward()
        found.append((loss.item(), [p.grad.clone() for p in model.parameters() if p.requires_grad]))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    for left, right in zip(*(gradients for _, gradients in found), strict=True):
        assert torch.allclose(left, right, atol=1e-5)
    assert max(gradient.abs().max() for gradient in found[0][1]) > 1e-2


def test_the_head_starts_as_the_formula_says(sft: Path) -> None:
    """w ~ N(0, 1/(d + 1)): mean 0 and deviation 1/sqrt(d + 1) within three standard errors over many seeds; b = 0."""
    weights = []
    for seed in range(100, 108):
        torch.manual_seed(seed)
        model = reward.build(sft, SETTINGS)
        weights.append(reward.head(model).weight.detach())
        assert model.get_base_model().reward_bias == 0.0
    w = torch.cat(weights)
    n, sigma = w.numel(), (w.shape[1] + 1) ** -0.5
    assert w.mean().abs() < 3 * sigma / n**0.5
    assert abs(w.std() - sigma) < 3 * sigma / (2 * n) ** 0.5
    assert len(weights[0]) == 1 and not torch.equal(weights[0], weights[1])


def test_only_the_adapter_and_the_head_learn_in_float32_without_dropout(sft: Path) -> None:
    model = reward.build(sft, SETTINGS, torch.bfloat16)
    learns = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in learns.values()} == {torch.float32}
    assert all(".lora_" in name or "score" in name for name in learns)
    assert {p.dtype for name, p in model.named_parameters() if ".mlp.up_proj.base_layer" in name} == {torch.bfloat16}
    twice = [reward.rewards(model, reward.collate(model, ROWS)) for _ in range(2)]  # in training mode
    assert torch.equal(*twice)


def test_rescaling_keeps_every_order(sft: Path, adapter: Path) -> None:
    model = reward.load(adapter, sft)[0]
    before = reward.score(model, ROWS)
    reward.rescale(model, 2.5, -1.0)
    assert torch.allclose(reward.score(model, ROWS), 2.5 * before - 1.0, atol=1e-5)
    reward.rescale(model, 0.1, 3.0)
    assert torch.allclose(reward.score(model, ROWS), 0.25 * before + 2.9, atol=1e-5)
    for gain, shift in ((0.0, 0.0), (-1.0, 0.0), (float("inf"), 0.0), (1.0, float("nan"))):
        with pytest.raises(ValueError, match="cannot be rescaled"):
            reward.rescale(model, gain, shift)


def test_the_merged_folder_loads_in_plain_transformers_with_the_same_scores(
    sft: Path, adapter: Path, merged: Path
) -> None:
    expected = reward.score(reward.load(adapter, sft)[0], ROWS)
    model, tokenizer, card = reward.load(merged)
    assert torch.allclose(reward.score(model, ROWS), expected, atol=1e-4)
    plain = AutoModelForSequenceClassification.from_pretrained(merged).eval()
    assert plain.config.num_labels == 1 and type(plain).__name__ == "LlamaForSequenceClassification"
    batch = tokenizer.pad({"input_ids": ROWS}, return_tensors="pt", padding_side="right")
    with torch.no_grad():
        logits = plain(**batch).logits[:, 0]
    assert torch.allclose(logits + card["bias"], expected, atol=1e-4)


def test_the_adapter_loads_in_plain_peft_with_the_same_scores(sft: Path, adapter: Path) -> None:
    from peft import PeftModel

    expected = reward.score(reward.load(adapter, sft)[0], ROWS)
    base = AutoModelForSequenceClassification.from_pretrained(sft, num_labels=1, pad_token_id=0)
    plain = PeftModel.from_pretrained(base, adapter).eval()
    with torch.no_grad():
        logits = torch.cat([plain(torch.tensor([row])).logits[:, 0] for row in ROWS])
    assert torch.allclose(logits + 0.25, expected, atol=1e-4)
    written = json.loads((adapter / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "tiny+instruct" and written["task_type"] == "SEQ_CLS"
    assert written["target_modules"] == sorted(written["target_modules"]) and "score" in written["modules_to_save"]


def test_the_head_can_be_read_alone(sft: Path, adapter: Path, merged: Path) -> None:
    model = reward.load(adapter, sft)[0]
    for folder in (adapter, merged):
        w, b = reward.head_of(folder)
        assert torch.equal(w, reward.head(model).weight[0]) and b == 0.25


def test_what_is_no_reward_model_is_refused_in_one_line(sft: Path, adapter: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds an adapter, which needs its base tiny\\+instruct"):
        reward.load(adapter)
    with pytest.raises(ValueError, match=r"trained on base tiny\+instruct, and .* \(tiny\) differs in its weights"):
        reward.load(adapter, base)
    with pytest.raises(ValueError, match="holds no reward model but a decoder model"):
        reward.load(sft)
    with pytest.raises(ValueError, match="holds no reward model"):
        reward.head_of(sft)
    with pytest.raises(ValueError, match="no linear layer of the base is named nope"):
        reward.build(sft, SETTINGS._replace(targets=("nope",)))
    with pytest.raises(ValueError, match="at least one token"):
        reward.score(reward.load(adapter, sft)[0], [[1, 2], []])
    assert reward.score(reward.load(adapter, sft)[0], []).shape == (0,)


def test_a_whole_model_is_a_base_and_an_adapter_is_none(sft: Path, base: Path, tmp_path: Path) -> None:
    found = decoder.identity_of(sft)
    assert found["id"] == "tiny+instruct" and found["sha256"] == sha256_of(sft / "model.safetensors")
    assert found["tokenizer_sha256"] == sha256_of(sft / "tokenizer.json")
    assert found["template_sha256"] == decoder.identity_of(base)["template_sha256"]
    folder = shutil.copytree(sft, tmp_path / "prefix")
    (folder / "adapter_config.json").write_text("{}")
    (folder / "ajuste.json").write_text(json.dumps({"kind": "decoder", "method": "prefix"}))
    with pytest.raises(ValueError, match="method `prefix`, which cannot be merged .*: train with a mergeable method"):
        reward.build(folder, SETTINGS)
    second = json.loads((sft / "ajuste.json").read_text())
    second["base"]["id"], second["method"] = "tiny+instruct", "ppo"
    folder = shutil.copytree(sft, tmp_path / "ppo")
    (folder / "ajuste.json").write_text(json.dumps(second))
    assert decoder.identity_of(folder)["id"] == "tiny+instruct+ppo"


@pytest.mark.parametrize("family", ["gpt2", "bloom"])
def test_other_architectures(family: str, sft: Path, tmp_path: Path) -> None:
    """GPT-2 keeps its matrices transposed; BLOOM's attention takes padded batches only."""
    own = shutil.copytree(sft, tmp_path / "base")
    size = {"vocab_size": decoder.load_base(sft)[0].config.vocab_size, "n_layer": 2, "n_head": 2}
    torch.manual_seed(0)
    if family == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_positions=64, **size))
    else:
        model = BloomForCausalLM(BloomConfig(hidden_size=32, **size))
    model.save_pretrained(own)
    adapter = reward_adapter(own, tmp_path / "adapter")
    model = reward.load(adapter, own)[0]
    assert shared_prefix.takes_shared(model) == (family == "gpt2")
    scores = reward.score(model, ROWS)
    assert torch.allclose(scores, torch.cat([reward.score(model, [row]) for row in ROWS]), atol=1e-5)
    assert scores.std() > 1e-3
    merged = reward_merged(own, adapter, tmp_path / "merged")
    assert torch.allclose(reward.score(reward.load(merged)[0], ROWS), scores, atol=1e-4)
