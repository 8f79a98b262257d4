"""A model's sizes without its weights: headers, the meta device, names that are none."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from ajuste.core.errors import UsageError
from ajuste.models import decoder, layers, shapes
from ajuste.models.made import make_tiny_decoder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_decoder(tmp_path_factory.mktemp("base"))


def test_a_folder_has_the_sizes_of_its_model(base: Path) -> None:
    model, _ = decoder.load_base(base)
    found = shapes.of_folder(base)
    assert found.P == model.num_parameters() and (found.L, found.d, found.G, found.f) == (4, 128, 2, 352)
    linear = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]
    assert found.M == sum(m.weight.numel() for m in linear)
    assert found.a(4) == sum(4 * sum(m.weight.shape) for m in linear)
    assert found.tied and found.rms and found.gated and found.fused
    assert layers.count_parameters(model)["total"] == found.P


def test_a_configuration_alone_is_built_on_the_meta_device(base: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((base / "config.json").read_text())
    alone, whole = shapes.of(str(tmp_path)), shapes.of(str(base))
    assert alone._replace(name="") == whole._replace(name="")


def test_a_class_of_transformers_needs_no_weights() -> None:
    """Llama's own sizes are those of Llama 7B: 6.74e9 weights, never in memory."""
    found = shapes.of("llama")
    assert found.P == 6_738_415_616 and LlamaConfig().hidden_size == found.d
    assert shapes.of("GPT2Config").P == 124_439_808


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    for name in ("gpt-9", "Trainer", str(tmp_path)):
        with pytest.raises(UsageError, match="gpt-9|Trainer|config.json"):
            shapes.of(name)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(UsageError, match="cannot be planned"):
        shapes.of(str(tmp_path))
