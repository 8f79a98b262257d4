"""ajuste/learning/layers/fused.py against PEFT's own forward and backward passes, and where it must keep out."""

import copy
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from ajuste.learning.layers import fused
from tests.invariants.decoders import gradients, largest_difference

torch.set_num_threads(1)


class Net(nn.Module):
    def __init__(self, bias: bool):
        super().__init__()
        self.first, self.second = nn.Linear(12, 20, bias=bias), nn.Linear(20, 7, bias=bias)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def adapted(dtype=torch.float32, bias=False, **options):
    torch.manual_seed(0)
    model = get_peft_model(
        Net(bias).to(dtype), LoraConfig(r=3, lora_alpha=6, target_modules=["first", "second"], **options)
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.3)
    return model


def run(model, x):
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = model(x)
    (y.float() * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return y.detach(), x.grad, gradients(model)


X = torch.linspace(-2, 2, 2 * 5 * 12).view(2, 5, 12).sin()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}])
def test_equals_peft_forward_and_backward(bias, options):
    expected, expected_dx, expected_gradients = run(adapted(bias=bias, **options), X)
    model = adapted(bias=bias, **options)
    assert fused.fuse(model) == 2
    found, found_dx, found_gradients = run(model, X)
    assert (found - expected).abs().max() < 1e-5
    assert (found_dx - expected_dx).abs().max() < 1e-5
    assert largest_difference(expected_gradients, found_gradients) < 1e-4  # of gradients of size 10
    assert all("lora_" in name for name in found_gradients)


def test_backward_against_finite_differences():
    torch.manual_seed(0)
    x, A, B = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 5), (2, 5), (4, 2)))
    W, bias = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, A, B: fused._LoraLinear.apply(x, W, bias, A, B, 1.5), (x, A, B))


def test_bfloat16_keeps_float32_originals_and_is_no_worse_than_autocast():
    exact = run(adapted(), X)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = run(adapted(), X)
    model = adapted(torch.bfloat16)
    fused.fuse(model)
    ours = run(model, X.bfloat16())
    assert all(p.dtype == torch.float32 for name, p in model.named_parameters() if "lora_" in name)

    def errors(result):
        """Relative to the float32 result: of y, of dx, and the mean over the gradients."""
        pairs = [*zip(result[:2], exact[:2], strict=True), *((result[2][name], g) for name, g in exact[2].items())]
        y, dx, *grads = [((found.float() - right).norm() / right.norm()).item() for found, right in pairs]
        return y, dx, sum(grads) / len(grads)

    for mine, peer in zip(errors(ours), errors(theirs), strict=True):
        assert mine < 2 * peer and mine < 0.02


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_dropout": 0.1}, {"lora_bias": True}])
def test_methods_that_it_does_not_describe_stay_with_peft(options):
    model = adapted(bias=True, **options)
    assert fused.fuse(model) == 0
    assert "forward" not in model.base_model.model.first.__dict__


def test_a_base_that_learns_too_and_layers_of_other_kinds_stay_with_peft():
    model = adapted()
    model.base_model.model.first.base_layer.weight.requires_grad_(True)
    assert fused.fuse(model) == 1 and "forward" not in model.base_model.model.first.__dict__
    run(model, X)
    assert model.base_model.model.first.base_layer.weight.grad is not None
    conv = nn.Sequential(Conv1D(7, 12))  # GPT-2's, transposed
    other = get_peft_model(conv, LoraConfig(r=2, target_modules=["0"], fan_in_fan_out=True, init_lora_weights=False))
    before = other(X)
    assert fused.fuse(other) == 0 and torch.equal(other(X), before)


def test_unfuse_gives_peft_s_own_forward_back():
    model, plain = adapted(), adapted()
    fused.fuse(model)
    fused.unfuse(model)
    assert "forward" not in model.base_model.model.first.__dict__ and torch.equal(model(X), plain(X))
    own = model.base_model.model.second
    own.forward = lambda x: x  # what someone else put there stays
    fused.unfuse(model)
    assert "forward" in own.__dict__


def test_another_dtype_and_arguments_go_peft_s_way():
    """float64 rows above a float32 base, and a call that names its adapters."""
    model, plain = adapted(), adapted()
    fused.fuse(model)
    layer, own = model.base_model.model.first, plain.base_model.model.first
    with pytest.raises(RuntimeError):
        own(X.double())
    with pytest.raises(RuntimeError):
        layer(X.double())
    rows = {"adapter_names": ["default", "__base__"]}
    layer.eval(), own.eval()
    assert torch.equal(layer(X, **rows), own(X, **rows)) and not torch.equal(layer(X, **rows)[1], layer(X)[1])


def test_off_merged_and_copied_adapters_are_right():
    plain, model = adapted(), adapted()
    fused.fuse(model)
    with plain.disable_adapter(), model.disable_adapter():
        assert torch.equal(model(X), plain(X))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.base_model.model.first.lora_B["default"].weight.zero_()
        other.base_model.model.second.lora_B["default"].weight.zero_()
    with model.disable_adapter():
        assert torch.allclose(other(X), model(X))  # the copy uses its own B, not the original's
    expected = plain(X)
    model.merge_adapter()
    assert torch.allclose(model(X), expected, atol=1e-5)
    model.unmerge_adapter()
    assert torch.allclose(model(X), expected, atol=1e-5)
    assert torch.allclose(model.merge_and_unload()(X), expected, atol=1e-5)


def test_a_second_adapter_and_autocast_go_peft_s_way():
    model = adapted()
    fused.fuse(model)
    model.add_adapter("other", LoraConfig(r=2, target_modules=["first", "second"], init_lora_weights=False))
    model.set_adapter("other")
    plain = adapted()
    plain.add_adapter("other", LoraConfig(r=2, target_modules=["first", "second"], init_lora_weights=False))
    plain.load_state_dict(model.state_dict())
    plain.set_adapter("other")
    assert torch.equal(model(X), plain(X))
    model, plain = adapted(), adapted()
    fused.fuse(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(X), plain(X))


def test_what_is_saved_is_the_same(tmp_path):
    plain, model = adapted(), adapted()
    fused.fuse(model)
    plain.save_pretrained(tmp_path / "plain")
    model.save_pretrained(tmp_path / "fused")
    name = "adapter_model.safetensors"
    assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "fused" / name).read_bytes()


def test_its_result_may_be_changed_in_place():
    """As OLMo does, which clips queries, keys and values."""
    found = []
    for fuse in (False, True):
        model = adapted()
        if fuse:
            fused.fuse(model)
        model.zero_grad()
        model.base_model.model.first(X.clone().requires_grad_()).clamp_(-0.5, 0.5).sum().backward()
        found.append(gradients(model))
    assert largest_difference(*found) < 1e-4


def test_the_formula_is_used_where_it_holds_and_nowhere_else(monkeypatch):
    """How many of two layers went our way: all that equals PEFT would also equal it if none did."""
    calls = []

    own = fused._LoraLinear
    spy = SimpleNamespace(apply=lambda *arguments: calls.append(1) or own.apply(*arguments))
    monkeypatch.setattr(fused, "_LoraLinear", spy)
    model = adapted()
    fused.fuse(model)

    def used() -> int:
        calls.clear()
        model(X)
        return len(calls)

    assert used() == 2
    with model.disable_adapter():
        assert used() == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert used() == 0
    model.add_adapter("other", LoraConfig(r=2, target_modules=["first"], init_lora_weights=False))
    model.set_adapter("other")
    plain = adapted()
    plain.add_adapter("other", LoraConfig(r=2, target_modules=["first"], init_lora_weights=False))
    plain.load_state_dict(model.state_dict())
    plain.set_adapter("other")
    assert used() == 1 and torch.allclose(model(X), plain(X), atol=1e-6)  # the second layer has none of that name
    for one in (model, plain):
        one.base_model.set_adapter(["default", "other"])
    assert used() == 1 and torch.allclose(model(X), plain(X), atol=1e-6)  # two at once in the first are PEFT's
    model.set_adapter("default")
    model.merge_adapter()
    assert used() == 0
