"""Building, saving, loading and asking classifiers of every supported architecture."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    RobertaConfig,
    RobertaModel,
)

from ajuste.learning.batching import pad, sorted_batches
from ajuste.models.classifier import (
    build,
    head_modules,
    last_linear,
    load,
    load_adapter,
    logits_of,
    predict,
    save,
)
from ajuste.models.folder import load_tokenizer, sha256_of
from ajuste.models.layers import count_parameters, linear_modules
from tests.made.tiny_classifiers import LABELS, TEXTS, card, tiny_adapter, tiny_base, tiny_full, tiny_tokenizer

SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
ARCHITECTURES = {
    "bert": lambda: BertModel(BertConfig(vocab_size=80, max_position_embeddings=64, **SMALL)),
    "bert without pooler": lambda: BertModel(BertConfig(vocab_size=80, max_position_embeddings=64, **SMALL), False),
    "roberta": lambda: RobertaModel(RobertaConfig(vocab_size=80, max_position_embeddings=66, pad_token_id=0, **SMALL)),
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(vocab_size=80, max_position_embeddings=64, n_layers=2, n_heads=4, dim=32, hidden_dim=64)
    ),
    "gpt2": lambda: GPT2Model(
        GPT2Config(vocab_size=80, n_positions=64, n_layer=2, n_head=4, n_embd=32, bos_token_id=0, eos_token_id=0)
    ),
}
HEADS = {
    "bert": ["classifier"],
    "bert without pooler": ["bert.pooler", "classifier"],
    "roberta": ["classifier"],
    "distilbert": ["classifier", "pre_classifier"],
    "gpt2": ["score"],
}


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """Name and base folder of each architecture, with random weights."""
    torch.manual_seed(0)
    base = tmp_path / "base"
    ARCHITECTURES[request.param]().save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    (base / "base.json").write_text(json.dumps({"id": "tiny", "sha256": sha256_of(base / "model.safetensors")}))
    return request.param, base


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_saved_model_answers_as_before(architecture: tuple[str, Path], pooling: str, tmp_path: Path) -> None:
    _, base = architecture
    model = build(base, LABELS, pooling=pooling).eval()
    about = card(base, "full", pooling)
    before = predict(model, tiny_tokenizer(), about, TEXTS)
    save(model, tiny_tokenizer(), tmp_path / "out", about)
    loaded, tokenizer, read = load(tmp_path / "out")
    assert torch.equal(predict(loaded, tokenizer, read, TEXTS), before)
    assert loaded.config.label2id == {"negative": 0, "positive": 1}
    if pooling == "cls":
        plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
        rows = tokenizer(TEXTS)["input_ids"]
        assert torch.equal(logits_of(plain, rows), logits_of(loaded, rows))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_an_adapter_comes_back_on_its_base(architecture: tuple[str, Path], pooling: str, tmp_path: Path) -> None:
    """All that is new (head, missing pooler, DistilBERT's pre_classifier) travels with the adapter."""
    name, base = architecture
    torch.manual_seed(1)
    model = build(base, LABELS, pooling=pooling)
    heads = head_modules(model, base)
    assert heads == (HEADS[name] if pooling == "cls" else ["head"])
    targets = linear_modules(model, ["all-linear"], heads)
    assert not any("classifier" in target or "pooler" in target for target in targets) or name == "bert"
    task = "SEQ_CLS" if pooling == "cls" else None
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets, modules_to_save=heads, task_type=task))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    about = card(base, "lora", pooling)
    before = predict(adapted.eval(), tiny_tokenizer(), about, TEXTS)
    save(adapted, tiny_tokenizer(), tmp_path / "out", about)
    torch.manual_seed(2)  # what is random in the base's head must not matter
    loaded, tokenizer, read = load_adapter(base, tmp_path / "out")
    assert torch.allclose(predict(loaded, tokenizer, read, TEXTS), before, atol=1e-6)


def test_padding_and_company_do_not_change_an_answer(architecture: tuple[str, Path]) -> None:
    """Alone, in a batch of any size, in any order: the same logits to 1e-5."""
    _, base = architecture
    for pooling in ("cls", "mean"):
        model = build(base, LABELS, pooling=pooling).eval()
        rows = tiny_tokenizer()(TEXTS)["input_ids"]
        alone = torch.cat([logits_of(model, [row]) for row in rows])
        for batch_rows in (1, 2, 32):
            assert torch.allclose(logits_of(model, rows, batch_rows), alone, atol=1e-5)
        assert torch.allclose(logits_of(model, rows[::-1]).flip(0), alone, atol=1e-5)


def test_mean_pooling_is_the_mean_of_the_unpadded_states(tmp_path: Path) -> None:
    base = tiny_base(tmp_path)
    model = build(base, LABELS, pooling="mean").eval()
    rows = [[2, 5, 3], [2, 6, 7, 8, 3]]
    features = model.features(*pad(rows, 0))
    for row, feature in zip(rows, features, strict=True):
        states = model.encoder(input_ids=torch.tensor([row])).last_hidden_state[0]
        assert torch.allclose(states.mean(dim=0), feature, atol=1e-5)


def test_an_adapter_is_refused_by_another_base(tmp_path: Path) -> None:
    base, other = tiny_base(tmp_path / "base"), tiny_base(tmp_path / "other", seed=1)
    adapter = tiny_adapter(base, tmp_path / "adapter")
    with pytest.raises(ValueError, match="belongs to base tiny with sha256 .* give it the base that it was trained on"):
        load_adapter(other, adapter)


def test_a_wrong_folder_is_named(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    adapter, whole = tiny_adapter(base, tmp_path / "adapter"), tiny_full(base, tmp_path / "full")
    with pytest.raises(ValueError, match="holds an adapter, which needs its base"):
        load(adapter)
    with pytest.raises(ValueError, match="holds no adapter"):
        load_adapter(base, whole)
    with pytest.raises(ValueError, match="ajuste.json is missing"):
        load(base)
    with pytest.raises(ValueError, match="task 'token' with pooling 'mean' does not exist"):
        build(base, LABELS, "token", "mean")
    with pytest.raises(ValueError, match="no linear layer of the base is named W_q: it has dense, key, query, value"):
        linear_modules(build(base, LABELS), ["W_q"], ["classifier"])
    model, tokenizer, read = load(whole)
    with pytest.raises(ValueError, match="only a `sequence` model"):
        predict(model, tokenizer, {**read, "task": "token"}, TEXTS)


def test_probabilities_of_no_texts_and_of_a_text_that_is_too_long(tmp_path: Path) -> None:
    model, tokenizer, about = load(tiny_full(tiny_base(tmp_path / "base"), tmp_path / "full"))
    assert predict(model, tokenizer, about, []).shape == (0, 2)
    long = "good " * 500  # far over max_tokens and the model's positions
    assert torch.allclose(predict(model, tokenizer, about, [long]), predict(model, tokenizer, about, [long * 2]))


def test_saving_twice_gives_the_same_bytes_also_after_use(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    model, tokenizer, about = load_adapter(base, tiny_adapter(base, tmp_path / "adapter"))
    save(model, tokenizer, tmp_path / "one", about)
    predict(model, tokenizer, about, TEXTS)  # a tokenizer remembers its last truncation
    save(model, tokenizer, tmp_path / "two", about)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
    config = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["base_model_name_or_path"] == "tiny" and not (tmp_path / "one" / "README.md").exists()


def test_parameters_by_hand(tmp_path: Path) -> None:
    """LoRA r on one d x k matrix adds r (d + k); the head is counted once although PEFT keeps a copy of the old one."""
    base = tiny_base(tmp_path)
    model = build(base, LABELS)
    total = count_parameters(model)["total"]
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["query"], modules_to_save=["classifier"]))
    lora = 2 * 4 * (32 + 32)
    counted = count_parameters(adapted)
    assert counted == {"total": total + lora, "trainable": lora + 66, "share": (lora + 66) / (total + lora)}
    assert last_linear(build(base, LABELS, pooling="mean")).weight.shape == (2, 32)


def test_batches_are_sorted_longest_first_and_hold_every_row_once() -> None:
    rows = [[0] * n for n in (3, 9, 1, 9, 4)]
    assert list(sorted_batches(rows, 2)) == [[1, 3], [4, 0], [2]]


def test_a_saved_tokenizer_does_not_depend_on_hf_hub_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base(tmp_path / "base")
    for offline in (False, True):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        load_tokenizer(base).save_pretrained(tmp_path / str(offline))
    files = [tmp_path / str(offline) / "tokenizer_config.json" for offline in (False, True)]
    assert files[0].read_bytes() == files[1].read_bytes()
