"""ajuste/learning/layers/bottleneck.py against h + W_up gelu(W_down h + b_down) + b_up written out, and its folder."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from ajuste.learning.layers import bottleneck
from tests.invariants.shapes import base_model, rows

torch.set_num_threads(1)


def moved(module: nn.Module, seed: int = 1) -> nn.Module:
    """With W_up and b_up drawn, as if training had moved them."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".up." in f".{name}" and parameter.requires_grad:
                parameter.normal_(std=0.3)
    return module


def by_hand(module: bottleneck.Bottleneck, h: torch.Tensor) -> torch.Tensor:
    """In float64, with gelu(x) = x (1 + erf(x / sqrt 2)) / 2."""
    Wd, bd, Wu, bu = (p.double() for p in (module.down.weight, module.down.bias, module.up.weight, module.up.bias))
    x = h.double() @ Wd.T + bd
    return (x * (1 + torch.erf(x / math.sqrt(2))) / 2) @ Wu.T + bu


def test_it_is_the_formula_with_its_gelu() -> None:
    torch.manual_seed(0)
    module, h = moved(bottleneck.Bottleneck(6, 3)), torch.randn(2, 5, 6) * 2
    assert torch.allclose(module(h).double(), by_hand(module, h), atol=1e-6)
    straight = h @ module.down.weight.T @ module.up.weight.T
    assert not torch.allclose(module(h), straight + module.up.bias + module.down.bias @ module.up.weight.T, atol=1e-2)


def test_it_starts_at_exactly_nothing() -> None:
    torch.manual_seed(0)
    module = bottleneck.Bottleneck(6, 3)
    assert not module(torch.randn(4, 6)).any() and module.down.weight.any()


def test_a_bfloat16_state_is_computed_in_float32_and_comes_back_bfloat16() -> None:
    torch.manual_seed(0)
    module, h = moved(bottleneck.Bottleneck(6, 3)), torch.randn(4, 6).bfloat16()
    found = module(h)
    assert found.dtype == torch.bfloat16 and torch.equal(found, module(h.float()).bfloat16())
    seen = []
    module.down.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        module(h)
    module(h)
    assert seen == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize(("blocks", "d", "width"), [(4, 32, 5), (1, 7, 3)])
def test_trainable_weights_are_counted(blocks: int, d: int, width: int) -> None:
    one = sum(p.numel() for p in bottleneck.Bottleneck(d, width).parameters())
    assert bottleneck.parameters(blocks, d, width) == blocks * one


@pytest.mark.parametrize(("family", "ends"), [("llama", ["o_proj", "down_proj"]), ("gpt2", ["c_proj", "c_proj"])])
def test_it_stands_behind_each_block_and_only_it_learns(family: str, ends: list[str]) -> None:
    model = base_model(family)
    torch.manual_seed(3)
    assert bottleneck.attach(model, 5) is model
    found = {name: module for name, module in model.named_modules() if isinstance(module, bottleneck.Bottleneck)}
    assert sorted(name.split(".")[-2] for name in found) == sorted(ends * 2)
    learning = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in learning) == bottleneck.parameters(4, 32, 5)
    assert set(bottleneck.state(model)) == {n for n, p in model.named_parameters() if p.requires_grad}
    moved(model)
    seen = {}
    for name, module in found.items():
        linear = model.get_submodule(name.rsplit(".", 1)[0])
        module.register_forward_hook(lambda _, args, out, name=name: seen.update({name: (args[0], out)}))
        linear.register_forward_hook(lambda _, args, out, name=name: seen.update({f"{name} after": out}))
    model(**rows(family))
    for name, module in found.items():
        h, out = seen[name]
        assert torch.allclose(out.double(), by_hand(module, h), atol=1e-5)
        assert torch.allclose(seen[f"{name} after"], h + out)


def test_its_folder_says_what_it_is_and_gives_the_same_model(tmp_path: Path) -> None:
    model = moved(bottleneck.attach(base_model("llama"), 5))
    bottleneck.save(model, tmp_path, "a base")
    said = json.loads((tmp_path / "bottleneck.json").read_text())
    assert said == {
        "method": "bottleneck adapters: h + W_up gelu(W_down h + b_down) + b_up behind each attention and MLP block",
        "base_model_name_or_path": "a base", "width": 5,
        "note": "PEFT has no such adapter and cannot load this folder: ajuste.models.decoder.load(folder, base) does",
    }  # fmt: skip
    assert (tmp_path / "bottleneck.json").read_text() == json.dumps(said, indent=2, sort_keys=True) + "\n"
    torch.manual_seed(7)
    before = torch.get_rng_state()
    again = bottleneck.load(base_model("llama", seed=0), tmp_path)
    torch.manual_seed(7)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(p.requires_grad for p in again.parameters())
    assert torch.equal(again(**rows("llama")).logits, model(**rows("llama")).logits)
    assert not torch.equal(again(**rows("llama")).logits, base_model("llama")(**rows("llama")).logits)


def test_loading_draws_nothing_from_the_generator(tmp_path: Path) -> None:
    bottleneck.save(moved(bottleneck.attach(base_model("llama"), 2)), tmp_path, "a base")
    model = base_model("llama")
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    bottleneck.load(model, tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    bottleneck.save(bottleneck.attach(base_model("gpt2"), 5), tmp_path, "a base")
    with pytest.raises(ValueError, match=r"^adapter .* does not fit its base: 16 tensors, 16 places for them$"):
        bottleneck.load(base_model("llama"), tmp_path)
    with pytest.raises(ValueError, match="^no layer of the base is named o_proj, down_proj, c_proj, out_proj, "):
        bottleneck.attach(nn.Sequential(nn.Linear(2, 2)), 5)
