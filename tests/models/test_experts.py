"""Experts fused in one parameter are adapted and merged, or their absence is told with its count."""

import json

import pytest
import torch
from safetensors.torch import load_file

from ajuste.core import notes
from ajuste.learning import lora
from ajuste.models import decoder, experts, methods
from ajuste.models.folder import load_tokenizer
from tests.made.architectures import DECODERS, make, rows_of, write

MIXTURES = [name for name in DECODERS if experts.parameters_of(make(name))]
LORA = methods.Settings("lora", r=2, alpha=6)


def drawn(model):
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    return model.eval()


def weights(name):
    return sum(p.numel() for p in experts.parameters_of(make(name)).values())


def test_the_zoo_has_the_mixtures_that_people_use():
    assert {"mixtral", "qwen3-moe", "olmoe", "gpt-oss", "phimoe", "llama4", "granite-moe"} <= set(MIXTURES)


@pytest.mark.parametrize("name", MIXTURES)
def test_targets_name_the_experts_and_leave_out_what_an_adapter_would_break(name):
    targets = experts.targets_of(make(name), ("all-linear",), fused=True)
    assert targets.parameters == ["experts.down_proj", "experts.gate_up_proj"]
    assert not {"router", "dt_proj"} & set(targets.modules) and "lm_head" not in targets.modules
    assert experts.targets_of(make(name), ("all-linear",), fused=False).parameters == []


@pytest.mark.parametrize(("name", "rslora"), [("mixtral", False), ("gpt-oss", True), ("phimoe", False)])
def test_experts_learn_and_the_merge_by_hand_agrees(name, rslora, tmp_path):
    """GPT-OSS keeps its matrices transposed, and down_proj square here: only the module says which way."""
    settings = LORA._replace(method="rslora" if rslora else "lora")
    changed = {"intermediate_size": 32} if name == "gpt-oss" else None
    base = write(name, tmp_path / "base", changed)
    model = drawn(methods.attach(methods.load_base(base, "lora", torch.float32), settings))
    ids = torch.tensor([rows_of()[0]])
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    fused = {part: p.grad for part, p in model.named_parameters() if "experts" in part and "lora_" in part}
    assert len(fused) == 8 and all(gradient.abs().sum() > 0 for gradient in fused.values())
    decoder.save_adapter(model, load_tokenizer(base), tmp_path / "adapter", {"base": {"id": name}})
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["target_parameters"] == ["experts.down_proj", "experts.gate_up_proj"]  # sorted: equal bytes
    W0, transposed = experts.base_weights(base / decoder.WEIGHTS, config, lambda: decoder.load_base(base)[0])
    assert bool(transposed) == (name == "gpt-oss")
    adapter = load_file(tmp_path / "adapter/adapter_model.safetensors")
    by_hand = list(lora.merge_by_hand(W0, adapter, config, transposed))
    assert sum("experts" in part for part, _ in by_hand) == 4
    assert lora.largest_difference(by_hand, lora.merge(model).state_dict()) < 1e-6


def test_one_expert_by_its_formula():
    """W_e + (alpha/r) B_e A_e, with r = 2, alpha = 6 and the third expert of four."""
    A, B, W0 = torch.randn(8, 3), torch.randn(5, 8), torch.zeros(4, 5, 3)
    found = lora.delta_experts(A, B, W0, r=2, alpha=6)[2]
    expected = 3 * sum(torch.outer(B[:, 2 + 4 * i], A[4 + i]) for i in range(2))
    assert torch.allclose(found.float(), expected, atol=1e-5)
    with pytest.raises(ValueError, match="no adapter of rank 1"):
        lora.delta_experts(A, B, W0, r=1, alpha=6)


@pytest.mark.parametrize(("change", "share"), [({}, 1), ({"method": "full"}, 1), ({"method": "dora"}, 0),
                                               ({"lora_dropout": 0.1}, 0), ({"targets": ("q_proj",)}, 0)])
def test_what_learns_of_the_experts_is_told_with_its_count(change, share, capsys):
    notes.forget()
    model = methods.attach(make("mixtral"), LORA._replace(**change))
    expected = {"weights": weights("mixtral"), "trained": share * weights("mixtral")}
    assert experts.told(model) == {"experts": expected}
    said = capsys.readouterr().out
    assert f"{expected['trained']:,} of {expected['weights']:,} weights of fused experts learn" in said
    assert "no loss on the router" in said and said.count("\n") == 1


def test_a_base_without_experts_says_nothing(capsys):
    assert experts.told(methods.attach(make("llama"), LORA)) == {}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("name", "layer", "why"), [("phimoe", "router", "does not answer with one tensor"),
                                                    ("jamba", "dt_proj", "would do nothing"),
                                                    ("qwen3-next", "gate_proj", "that of a single expert")])
def test_a_layer_that_cannot_be_adapted_is_refused_with_the_reason(name, layer, why):
    with pytest.raises(ValueError, match=f"layer {layer} of the base cannot be adapted: .*{why}"):
        methods.attach(make(name), LORA._replace(targets=(layer,)))


def test_experts_named_with_a_method_that_cannot_adapt_them_are_refused():
    with pytest.raises(ValueError, match="need method lora or rslora"):
        methods.attach(make("mixtral"), LORA._replace(method="dora", targets=("gate_up_proj",)))
    with pytest.raises(ValueError, match="no linear layer of the base is named nothing: it has .*q_proj"):
        methods.attach(make("mixtral"), LORA._replace(targets=("nothing",)))
