"""The adapters' keys do what their formulas say, in each of the four places that make an adapter.

    y = W0 x + s B A x             s = alpha/r, for rslora alpha/sqrt(r)    instruct, reward, one base, classify.lora
    lora_dropout p                 a column of x is 0, or 1/(1 - p) times itself
    dropout                        as configured, or none where there is no such key

Values that are no default: r = 3, alpha = 5, so that alpha/r, 1, alpha and r are four different numbers.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

from ajuste.judging.objectives import SEQUENCE
from ajuste.models import methods, quantize, reward
from ajuste.models.classifier import build
from ajuste.models.layers import set_dropout
from ajuste.models.one_base import OneBase, Settings
from tasks.classify.lora import LoraConfig, add_lora
from tests.invariants.decoders import decoder
from tests.keys.test_supervised import SECTIONS
from tests.made import tiny_classifiers
from tests.made.tiny_rlhf import whole

torch.set_num_threads(1)
R, ALPHA = 3, 5.0


@pytest.fixture(scope="module")
def folders(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A decoder and an encoder, both with every dropout of their configs at 0.5."""
    root = tmp_path_factory.mktemp("adapters")
    made = {"decoder": whole(base, root / "decoder", 3), "encoder": tiny_classifiers.tiny_base(root / "encoder")}
    for folder in made.values():
        config = json.loads((folder / "config.json").read_text())
        config |= {name: 0.5 for name in config if "dropout" in name and isinstance(config[name], float)}
        (folder / "config.json").write_text(json.dumps(config))
    return made


def adapted(place: str, folders: dict[str, Path], dropout: float = 0.0, targets: tuple = ("all-linear",),
            method: str = "lora") -> nn.Module:  # fmt: skip
    """The place's model in training mode with r = 3 and alpha = 5, its B drawn."""
    torch.manual_seed(0)
    if place == "instruct":
        model = methods.attach(decoder(), methods.Settings(method, R, ALPHA, dropout, targets))
    elif place == "reward":
        model = reward.build(folders["decoder"], reward.Settings(R, ALPHA, dropout, targets))
    elif place == "ppo":
        model = OneBase(decoder(), Settings(r=R, alpha=ALPHA, targets=targets, value="adapter")).train()
    else:
        names = [{"q_proj": "query"}.get(name, name) for name in targets]
        section = {**SECTIONS["classify.lora"], "r": R, "alpha": ALPHA, "lora_dropout": dropout, "targets": names}
        model = set_dropout(build(folders["encoder"], tiny_classifiers.LABELS, "sequence", "cls"), 0.0)
        model = add_lora(model, SEQUENCE, LoraConfig(**section), folders["encoder"]).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.5)
    return model


def layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, module) for name, module in model.named_modules() if hasattr(module, "lora_A") and module.lora_A)


def update(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the layer adds to W0 x, and B A x, in float32."""
    name = layer.active_adapters[0]
    A, B = layer.lora_A[name].weight, layer.lora_B[name].weight
    return (layer(x) - layer.base_layer(x)).detach().float(), (x.float() @ A.T @ B.T).detach()


PLACES = ("instruct", "reward", "ppo", "classify")


@pytest.mark.parametrize("place", PLACES)
def test_the_update_is_alpha_over_r_times_B_A(place: str, folders: dict[str, Path]) -> None:
    found = list(layers(adapted(place, folders)))
    assert len(found) >= 8
    for _, layer in found:
        x = torch.randn(4, layer.in_features)
        seen, BA = update(layer, x)
        assert BA.abs().max() > 0.1 and torch.allclose(seen, ALPHA / R * BA, atol=2e-5)
        assert {A.weight.shape[0] for A in layer.lora_A.values()} == {R}
        assert {B.weight.shape[1] for B in layer.lora_B.values()} == {R}
        assert set(layer.scaling.values()) == {ALPHA / R}  # PPO's value adapter too


@pytest.mark.parametrize(("method", "scale"), [("lora", ALPHA / R), ("rslora", ALPHA / math.sqrt(R))])
def test_rslora_divides_by_the_root(method: str, scale: float, folders: dict[str, Path]) -> None:
    for _, layer in layers(adapted("instruct", folders, method=method)):
        seen, BA = update(layer, torch.randn(4, layer.in_features))
        assert torch.allclose(seen, scale * BA, atol=2e-5)


def test_dora_keeps_the_length_of_each_row(folders: dict[str, Path]) -> None:
    """W = m (W0 + s B A) / |W0 + s B A|, m starting as the lengths of W0's rows."""
    for _, layer in layers(adapted("instruct", folders, method="dora")):
        W0, s = layer.base_layer.weight, ALPHA / R
        V = W0 + s * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        W = W0.norm(dim=1, keepdim=True) * V / V.norm(dim=1, keepdim=True)
        x = torch.randn(4, layer.in_features)
        assert torch.allclose(layer(x), x @ W.T, atol=1e-4) and not torch.allclose(W, V, atol=1e-2)


@pytest.mark.parametrize("place", ("instruct", "reward", "classify"))
def test_lora_dropout_keeps_x_times_one_over_one_minus_p_or_nothing(place: str, folders: dict[str, Path]) -> None:
    """400 rows that are the first unit vector: each adds s B A e / (1 - p) or 0, and 0 with probability p."""
    p = 0.4
    _, layer = next(layers(adapted(place, folders, dropout=p)))
    seen, BA = update(layer, torch.eye(layer.in_features)[:1].repeat(400, 1))
    nothing = (seen == 0).all(1)
    assert torch.allclose(seen[~nothing], ALPHA / R * BA[~nothing] / (1 - p), atol=2e-5)
    assert abs(nothing.float().mean().item() - p) < 4 * math.sqrt(p * (1 - p) / 400)
    layer.eval()
    assert torch.allclose(update(layer, torch.eye(layer.in_features)[:1])[0], ALPHA / R * BA[:1], atol=2e-5)


@pytest.mark.parametrize("place", PLACES)
def test_only_the_named_layers_are_adapted(place: str, folders: dict[str, Path]) -> None:
    names = {name.rsplit(".", 1)[-1] for name, _ in layers(adapted(place, folders, targets=("q_proj",)))}
    assert names == {"query" if place == "classify" else "q_proj"}


def passes(place: str, folders: dict[str, Path], dropout: float = 0.0) -> list[torch.Tensor]:
    """Two passes of one batch in training mode, of bases whose config says dropout 0.5."""
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    torch.manual_seed(0)
    if place == "classify":
        model = set_dropout(build(folders["encoder"], tiny_classifiers.LABELS, "sequence", "cls"), dropout).train()
    elif place == "reward":
        model = reward.build(folders["decoder"], reward.Settings(R, ALPHA))
    else:
        causal = AutoModelForCausalLM.from_pretrained(folders["decoder"], dtype=torch.float32)
        one = OneBase(causal, Settings(r=R)).train()
        asked = ([[5, 6]], torch.tensor([[7, 8, 9]]), torch.ones(1, 3).bool(), 1.0)
        return [one.policy_and_values(*asked)[0] for _ in range(2)]
    return [model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits for _ in range(2)]


@pytest.mark.parametrize("place", ("reward", "ppo", "classify"))
def test_two_passes_in_training_mode_are_equal_to_the_bit_though_the_base_says_dropout(
    place: str, folders: dict[str, Path]
) -> None:
    control = AutoModel.from_pretrained(folders["encoder" if place == "classify" else "decoder"]).train()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    assert not torch.equal(*(control(input_ids=ids).last_hidden_state for _ in range(2))), "this test could not fail"
    assert torch.equal(*passes(place, folders))


def test_the_classifiers_dropout_is_the_configured_one(folders: dict[str, Path]) -> None:
    model = set_dropout(build(folders["encoder"], tiny_classifiers.LABELS, "sequence", "cls"), 0.3)
    found = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    assert len(found) >= 5 and set(found) == {0.3}
    assert not torch.equal(*passes("classify", folders, dropout=0.3))


@pytest.mark.parametrize(("method", "tokens"), [("prefix", 3), ("prompt", 5)])
def test_virtual_tokens_are_as_many_as_configured(method: str, tokens: int) -> None:
    torch.manual_seed(0)
    model = methods.attach(decoder(), methods.Settings(method, virtual_tokens=tokens))
    (weight,) = (p for p in model.parameters() if p.requires_grad)
    width = 48 if method == "prompt" else 3 * 2 * 16  # layers, keys and values, 2 heads of 8
    assert weight.shape == (tokens, width)


def test_the_bottleneck_is_as_wide_as_configured() -> None:
    model = methods.attach(decoder(), methods.Settings("bottleneck", bottleneck_width=7))
    shapes = {p.shape for name, p in model.named_parameters() if name.endswith("down.weight")}
    assert shapes == {(7, 48), (7, 96)} or shapes == {(7, 48)}


def test_nf4_has_its_constants_quantised_once_more(base: Path) -> None:
    """Per 64 weights one number of 8 bits, per 256 of those one of 32: 4.127 bits a weight and not 4.5."""
    seen = 0
    for module in quantize.load(base, "nf4").modules():
        weight = module._parameters.get("weight")
        if type(weight).__name__ == "Params4bit":
            state, seen = weight.quant_state, seen + 1
            assert state.quant_type == "nf4" and state.blocksize == 64
            assert state.nested and state.absmax.dtype == torch.uint8 and state.state2.blocksize == 256
            assert state.absmax.numel() == state.shape.numel() / 64
    assert seen == 28
