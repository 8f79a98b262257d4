"""The guard between an adapter and its base: what differs is named, in one line."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ajuste.models import decoder
from tests.made.tiny_decoders import tiny_adapter


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_adapter(base, tmp_path_factory.mktemp("guarded"))


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
