"""ajuste/learning/layers/two_ways.py: what the probe asks, of which copy, what counts as different."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ajuste.learning.layers import ragged, two_ways
from tests.invariants.decoders import decoder
from tests.invariants.test_ragged import with_lora
from tests.made.architectures import EOS, PAD, VOCABULARY, make


def test_rows_begin_alike_and_hold_no_token_that_the_configuration_names():
    model = make("llama")
    first, second = two_ways.rows(model)
    assert (len(first), len(second)) == two_ways.LENGTHS
    assert first[: two_ways.SHARED] == second[: two_ways.SHARED]
    own = first[two_ways.SHARED :] + second[two_ways.SHARED :]
    assert len({*first, *own}) == two_ways.SHARED + len(own) and not {PAD, EOS, 1} & {*first, *second}
    assert max(first + second) > VOCABULARY * 0.9
    model.config.eos_token_id = [EOS, own[0]]  # a list of ends, as Llama 3 has
    assert own[0] not in {token for row in two_ways.rows(model) for token in row}


def test_the_copy_is_shallow_awake_and_in_float32():
    model = with_lora(decoder("llama").bfloat16())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    small, exact = two_ways.shallow(model)
    assert exact and not small.training and model.training
    assert len(small.get_base_model().model.layers) == two_ways.LAYERS < len(model.get_base_model().model.layers) == 3
    assert small.get_base_model().config.num_hidden_layers == 2 and model.get_base_model().config.num_hidden_layers == 3
    assert {parameter.dtype for parameter in small.parameters()} == {torch.float32}
    assert all(parameter.any() for name, parameter in small.named_parameters() if "lora_B" in name)
    assert not any(parameter.any() for name, parameter in model.named_parameters() if "lora_B" in name)
    assert small.get_base_model().lm_head.weight is small.get_base_model().model.embed_tokens.weight  # tied, as it was


def test_the_copy_shows_every_kind_of_layer():
    """Windows from the third layer on: three layers are needed."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    config = Qwen2Config(**sizes, num_hidden_layers=5, num_key_value_heads=2, use_sliding_window=True, sliding_window=4,
                         max_window_layers=2)
    small, _ = two_ways.shallow(Qwen2ForCausalLM(config))
    assert len(small.model.layers) == 3 and small.config.layer_types == config.layer_types[:3]


def test_nothing_of_the_model_changes():
    model = with_lora(decoder("llama"))
    rows = two_ways.rows(model)
    before, state = {name: p.clone() for name, p in model.named_parameters()}, torch.get_rng_state()

    def way(small: nn.Module) -> two_ways.Seen:
        ragged.attach(small)
        loss = ragged.response_loss(small, ragged.collate([(row, row) for row in rows]))
        seen = {"loss": loss.detach()} | two_ways.gradients(loss, small)
        with torch.no_grad():
            for parameter in small.parameters():
                parameter.add_(1.0)
        return seen

    assert two_ways.choose(model, way, {"same": way}).name is None  # its weights had been moved by 1
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and not ragged.takes_ragged(model)


def test_gradients_are_those_of_the_first_and_last_trained_weights():
    model = with_lora(decoder("llama"))
    loss = ragged.response_loss(model, ragged.padded([([3, 4, 5, 6], [3, 4, 5, 6])], 0))
    found = two_ways.gradients(loss, model)
    assert len(found) == 6 and all(name.startswith(two_ways.GRADIENT) and "lora" in name for name in found)
    assert any("layers.0." in name for name in found) and any("layers.2." in name for name in found)
    with torch.no_grad():
        assert two_ways.gradients(loss, model) == {}


@pytest.mark.parametrize(
    "found, words",
    [
        (torch.tensor([1.0, 2.0]), ""),
        (torch.tensor([1.0, 2.0001]), ""),
        (torch.tensor([1.0, 2.001]), "loss would be 0.0% off"),
        (torch.tensor([1.0, 2.2]), "loss would be 8.9% off"),
        (torch.tensor([1.0, float("nan")]), "loss would be nan% off"),
        (torch.tensor([1.0, 2.0, 3.0]), r"loss: shape \[3\] in place of \[2\]"),
    ],
)
def test_difference_in_words(found: torch.Tensor, words: str):
    import re

    assert re.fullmatch(words, two_ways.difference({"loss": found}, {"loss": torch.tensor([1.0, 2.0])}, 1e-4, 1e-3))


def test_the_first_way_that_agrees_is_chosen_and_the_reasons_are_kept():
    def raises(small: nn.Module) -> two_ways.Seen:
        raise RuntimeError("no kernel\nand a trace")

    model, one = decoder("llama"), {"x": torch.ones(3)}
    ways = {"broken": raises, "wrong": lambda small: {"x": torch.zeros(3)}, "right": lambda small: one}
    chosen = two_ways.choose(model, lambda small: one, ways)
    assert chosen.name == "right" and chosen.reason == "RuntimeError: no kernel"
    assert chosen.reasons["wrong"] == "x would be 100.0% off"
    with pytest.raises(ValueError, match="own forward fails on two short rows .RuntimeError: no kernel"):
        two_ways.choose(model, raises, ways)


ZERO = {"x": torch.zeros(2), "gradient of w": torch.tensor([3.0, 4.0])}


@pytest.mark.parametrize(
    "found, words",
    [
        ({}, ""),
        ({"x": torch.tensor([0.3, 0.4])}, "x would be 50.0% off"),  # beside nothing it is the size itself
        ({"gradient of w": torch.tensor([3.0, 4.01])}, ""),  # 0.2 %: a gradient may be off by 0.5 %
        ({"gradient of w": torch.tensor([3.0, 4.05])}, "gradient of w would be 1.0% off"),
        ({"x": torch.tensor([0.004, 0]), "gradient of w": torch.tensor([3, 4.25])}, "gradient of w would be 5.0% off"),
        ({"x": torch.tensor([0.02, 0.0]), "gradient of w": torch.tensor([3.0, 4.05])}, "x would be 2.0% off"),
        ({"x": torch.zeros(2, 1)}, "x: shape [2, 1] in place of [2]"),
    ],
)
def test_what_is_worst_beside_its_own_tolerance_is_named(found: dict, words: str):
    assert two_ways.difference({**ZERO, **found}, ZERO, 1e-3, 5e-3) == words


def test_errors_are_told_in_a_line():
    assert two_ways._said(ValueError("  first\nsecond \n")) == "first"
    assert two_ways._said(RuntimeError("first\nsecond")) == "RuntimeError: first"
    assert two_ways._said(KeyError()) == "KeyError: " and two_ways._said(ValueError("")) == ""
    long = "x" * 300
    assert two_ways._said(ValueError(long)) == long[:200]
    assert two_ways._said(TypeError(long)) == "TypeError: " + long[:200]


def test_what_cannot_be_compared_is_refused_and_no_way_may_agree():
    model, one = decoder("llama"), {"x": torch.ones(3)}
    said = "^what it says of two short rows is not finite: its weights are damaged$"
    with pytest.raises(ValueError, match=said):
        two_ways.choose(model, lambda small: {"x": torch.tensor([1.0, torch.inf])}, {"same": lambda small: one})
    none = two_ways.choose(model, lambda small: one, {"wrong": lambda small: {"x": torch.zeros(3)}})
    assert none.name is None and none.reason == "x would be 100.0% off"
    alone = two_ways.choose(model, lambda small: one, {"same": lambda small: one})
    assert alone == ("same", {}) and alone.reason == ""


def test_tolerances_are_those_of_the_copys_arithmetic():
    """1e-4 and 1e-3 in float32; wider where weights are no floating-point numbers."""
    model = decoder("llama")

    def choose() -> str | None:
        one = {"x": torch.ones(1), "gradient of w": torch.ones(1)}
        off = {"x": torch.ones(1) * 1.001, "gradient of w": torch.ones(1)}
        return two_ways.choose(model, lambda small: one, {"off": lambda small: off}).name

    assert choose() is None
    model.packed = nn.Parameter(torch.ones(2, 2, dtype=torch.uint8), requires_grad=False)
    assert choose() == "off" and two_ways.shallow(model)[1] is False


def test_the_first_and_last_of_the_trained_weights_are_watched():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(5)))
    model[0].weight.requires_grad_(False)
    assert list(two_ways.watched(model)) == ["0.bias", "1.weight", "1.bias", "3.bias", "4.weight", "4.bias"]
    assert list(two_ways.watched(model, 1)) == ["0.bias", "4.bias"]
    assert len(two_ways.watched(nn.Sequential(nn.Linear(2, 2)))) == 2
    loss = (model[1](torch.ones(2)) * 2).sum()
    found = two_ways.gradients(loss, model)
    assert found["gradient of 1.bias"].tolist() == [2.0, 2.0] and not found["gradient of 4.bias"].any()
    assert all(weight.grad is None for weight in model.parameters())
    assert two_ways.gradients(loss, model.requires_grad_(False)) == {}


def test_only_what_starts_at_zero_and_learns_is_woken():
    model = nn.Module()
    for name, tensor, learns in (("zero", torch.zeros(40, 50), True), ("frozen", torch.zeros(4, 5), False),
                                 ("bias", torch.zeros(5), True), ("own", torch.eye(3), True)):
        setattr(model, name, nn.Parameter(tensor, requires_grad=learns))
    two_ways._wake(model)
    expected = 0.02 * torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.zero, expected)
    assert not model.frozen.any() and not model.bias.any() and torch.equal(model.own, torch.eye(3))


def test_a_module_whose_layers_are_not_found_is_copied_whole():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)).double()
    small, exact = two_ways.shallow(model)
    assert exact and len(small) == 2 and small[0].weight.dtype == torch.float32 and small[0] is not model[0]
    assert len(two_ways._layers(model)) == 0 and len(two_ways._layers(decoder("llama"))) == 3
    assert len(two_ways._layers(configured(name="no number of layers"))) == 0


def test_a_tolerance_is_kept_up_to_its_end_and_the_first_of_equals_is_named():
    expected = {"x": torch.tensor([1.0, 0.0]), "y": torch.tensor([2.0, 0.0])}
    off = {"x": torch.tensor([1.5, 0.0]), "y": torch.tensor([3.0, 0.0])}
    assert two_ways.difference(off, expected, 0.5, 0.0) == ""
    assert two_ways.difference(off, expected, 0.25, 0.0) == "x would be 50.0% off"


def configured(**config: object) -> nn.Module:
    module = nn.Module()
    module.config = SimpleNamespace(**config)
    return module


def test_tokens_are_spread_evenly_over_what_is_usable():
    """The smaller vocabulary of two, without single tokens, lists of them and those of an image."""
    module = nn.Module()
    module.one = configured(vocab_size=60, pad_token_id=0, eos_token_id=[1, 7], image_token_index=30)
    module.two, module.three = configured(vocab_size=50, name="a"), configured(vocab_size=None)
    module.four = configured(name="b")  # of a part that reads no tokens
    usable = [token for token in range(50) if token not in (0, 1, 7, 30)]
    wanted = 4 + 9 + 5
    spread = [usable[int((i + 0.5) * len(usable) / wanted)] for i in range(wanted)]
    first, second = two_ways.rows(module)
    assert first + second[4:] == [*spread[::2], *spread[1::2]] and second[:4] == first[:4]


def test_layers_differ_by_their_values_and_not_by_their_numbers():
    def layer(**values: object) -> nn.Module:
        module = nn.Sequential(nn.Linear(2, 2))
        for name, value in values.items():
            setattr(module, name, value)
        return module

    plain = two_ways._kind(layer(block_idx=0, layer_id=0, window=4, weights=[1]))
    assert plain == two_ways._kind(layer(block_idx=1, layer_id=2, window=4, weights=[2]))
    assert plain != two_ways._kind(layer(block_idx=0, layer_id=0, window=5))
    assert plain != two_ways._kind(layer(block_idx=0, layer_id=0, window=None))
    assert two_ways._kind(nn.Sequential(nn.Tanh())) != two_ways._kind(nn.Sequential(nn.Sigmoid())), "by their class"
    assert two_ways._kind(nn.Sequential(nn.Linear(2, 2))) != two_ways._kind(nn.Sequential(nn.LayerNorm(2)))


def test_configurations_are_cut_with_the_layers():
    module = nn.Module()
    module.long, module.short = configured(num_hidden_layers=5, layer_types=list("abcde")), configured(a=1)
    module.even, module.none = configured(num_hidden_layers=2), configured(num_hidden_layers=3, layer_types=None)
    two_ways._cut_configs(module, 2)
    assert vars(module.long.config) == {"num_hidden_layers": 2, "layer_types": ["a", "b"]}
    assert vars(module.short.config) == {"a": 1} and vars(module.even.config) == {"num_hidden_layers": 2}
    assert vars(module.none.config) == {"num_hidden_layers": 2, "layer_types": None}
