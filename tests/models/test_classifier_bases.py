"""A classifier's LoRA on bases whose weights have other names on disk: its head is found, experts learn, it merges."""

import json

import pytest
import torch
from safetensors.torch import load_file

from ajuste.judging.objectives import SEQUENCE
from ajuste.learning import lora
from ajuste.models import classifier, experts
from ajuste.models.folder import load_tokenizer
from tasks.classify.lora import LoraConfig, add_lora
from tests.made.architectures import rows_of, write

LABELS = ["no", "yes"]


@pytest.mark.parametrize(
    ("name", "pooling", "heads"),
    [("llama", "mean", ["head"]), ("mixtral", "cls", ["score"]),
     pytest.param("gpt-oss", "mean", ["head"], marks=pytest.mark.slow),
     pytest.param("qwen3-next", "cls", ["score"], marks=pytest.mark.slow)],
)  # fmt: skip
def test_lora_of_a_decoder_is_kept_and_merged(name, pooling, heads, tmp_path):
    base = write(name, tmp_path / "base")
    torch.manual_seed(0)
    model = classifier.build(base, LABELS, "sequence", pooling)
    assert classifier.head_modules(model, base) == heads
    config = LoraConfig.model_construct(r=2, alpha=4, lora_dropout=0.0, targets=["all-linear"], pooling=pooling)
    adapted = add_lora(model, SEQUENCE, config, base).eval()
    with torch.no_grad():
        for part, parameter in adapted.named_parameters():
            if "lora_" in part:
                parameter.normal_(std=0.1)
    identity = json.loads((base / "base.json").read_text())
    card = {"task": "sequence", "pooling": pooling, "labels": LABELS, "base": identity}
    classifier.save(adapted, load_tokenizer(base), tmp_path / "adapter", card)
    back, _, _ = classifier.load_adapter(base, tmp_path / "adapter")
    expected = classifier.logits_of(adapted, rows_of())
    assert torch.equal(classifier.logits_of(back, rows_of()), expected)
    settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    W0, transposed = experts.base_weights(
        base / "model.safetensors", settings, lambda: classifier.build(base, LABELS, "sequence", pooling)
    )
    by_hand = lora.merge_by_hand(W0, load_file(tmp_path / "adapter/adapter_model.safetensors"), settings, transposed)
    merged = lora.merge(back)
    assert lora.largest_difference(by_hand, merged.state_dict()) < 1e-6
    assert torch.allclose(classifier.logits_of(merged, rows_of()), expected, atol=1e-5)
