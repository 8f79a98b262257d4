"""ajuste/learning/layers/active.py: which calls of attention are ours, what they must not hold, and whose the others
are."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ajuste.learning.layers import active
from tests.invariants.decoders import decoder

torch.set_num_threads(1)
QUERY = torch.zeros(1, 2, 5, 16)


class Layer(nn.Module):
    """An attention layer that has only what is asked of it."""

    def __init__(self, number: int | None = None, **config: object) -> None:
        super().__init__()
        self.config = SimpleNamespace(**config)
        if number is not None:
            self.layer_idx = number


def test_plain_attention_has_a_scale_a_dropout_and_a_window() -> None:
    assert active.plain_arguments(Layer(), QUERY, {}) == (0.25, 0.0, None)
    every = {"scaling": 0.5, "dropout": 0.1, "sliding_window": 7, "is_causal": True, "softcap": None}
    assert active.plain_arguments(Layer(), QUERY, every | dict.fromkeys(active.WITHOUT_EFFECT, True)) == (0.5, 0.1, 7)
    assert active.plain_arguments(nn.Linear(1, 1), QUERY, {"scaling": None}).scale == 0.25  # no config at all


@pytest.mark.parametrize(("arguments", "what"), [
    ({"softcap": 50.0}, "argument `softcap`"), ({"scaling": 1.0, "s_aux": QUERY, "more": 1}, "argument `s_aux`"),
    ({"is_causal": False}, "the view in both directions"),
])  # fmt: skip
def test_any_other_argument_is_refused_by_its_name(arguments: dict, what: str) -> None:
    with pytest.raises(ValueError, match=f"^{what} of Layer would be lost without padding$"):
        active.plain_arguments(Layer(), QUERY, arguments)


FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"


@pytest.mark.parametrize(("layer", "arguments", "right"), [
    (Layer(sliding_window=4), {}, False), (Layer(sliding_window=4), {"sliding_window": None}, True),
    (Layer(sliding_window=4), {"sliding_window": 4}, True), (Layer(sliding_window=None), {}, True),
    (Layer(), {"sliding_window": 4}, True),
    (Layer(0, layer_types=[FULL, SLIDING]), {}, True), (Layer(1, layer_types=[FULL, SLIDING]), {}, False),
    (Layer(0, layer_types=[FULL, SLIDING]), {"sliding_window": 4}, False),
    (Layer(1, layer_types=[FULL, SLIDING]), {"sliding_window": 4}, True),
    (Layer(layer_types=[FULL, FULL]), {}, True), (Layer(layer_types=[FULL, SLIDING]), {}, False),
    (Layer(0, layer_types=[CHUNKED]), {}, False), (Layer(1, layer_types=[CHUNKED, FULL]), {}, True),
    (Layer(layer_types=[], sliding_window=4), {}, False), (Layer(0, layer_types=[FULL], sliding_window=4), {}, True),
], ids=str)  # fmt: skip
def test_a_window_that_only_a_mask_would_hold_is_refused(layer: Layer, arguments: dict, right: bool) -> None:
    if right:
        assert active.plain_arguments(layer, QUERY, arguments).window == arguments.get("sliding_window")
    else:
        with pytest.raises(ValueError, match="^the window of Layer would be lost without padding$"):
            active.plain_arguments(layer, QUERY, arguments)


def test_lengths_go_our_way_and_masks_that_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple] = []

    def theirs(*given: object, **arguments: object) -> tuple:
        seen.append((given, arguments))
        return "theirs", "weights"

    layer, q, k, v = Layer(), QUERY, QUERY + 1, QUERY + 2
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "before", theirs)
    monkeypatch.delattr(sys.modules[Layer.__module__], "eager_attention_forward", raising=False)
    call = lambda mask, **more: active._attention("before", lambda *given: given, layer, q, k, v, mask, **more)  # noqa: E731
    for mask in (None, torch.ones(1, 1, 5, 5, dtype=torch.bool), torch.zeros(1, 1, 5, 5)):
        assert call(mask, softcap=3.0) == ("theirs", "weights")
        given, arguments = seen.pop()
        assert all(a is b for a, b in zip(given, (layer, q, k, v, mask), strict=True)) and arguments == {"softcap": 3.0}
    lengths = torch.tensor([2, 3]).view(1, 1, 1, -1)
    (plain, *tensors), weights = call(lengths, scaling=0.5)
    assert plain == (0.5, 0.0, None) and weights is None and not seen
    assert all(a is b for a, b in zip(tensors, (q, k, v, lengths), strict=True))
    assert call(lengths)[0][0].scale == 0.25
    with pytest.raises(ValueError, match="argument `softcap` of Layer would"):
        call(lengths, softcap=3.0)


def test_the_models_own_file_says_what_its_attention_is() -> None:
    """Also of a class that something puts above it; a file without a table of its own uses transformers'."""
    def eager() -> None: ...
    def sdpa() -> None: ...

    own, bare = ModuleType("made_up_own"), ModuleType("made_up_bare")
    own.eager_attention_forward, own.ALL_ATTENTION_FUNCTIONS = eager, {"sdpa": sdpa}
    bare.eager_attention_forward = eager
    sys.modules |= {"made_up_own": own, "made_up_bare": bare}
    try:
        kinds = {name: type("Kind", (nn.Module,), {"__module__": name}) for name in ("made_up_own", "made_up_bare")}
        above = type("Above", (kinds["made_up_own"],), {"__module__": "nowhere"})
        for kind in (kinds["made_up_own"], above):
            assert active._of_model(kind(), "eager") is eager and active._of_model(kind(), "sdpa") is sdpa
        plain = kinds["made_up_bare"]()
        assert active._of_model(plain, "eager") is eager
        assert active._of_model(plain, "sdpa") is ALL_ATTENTION_FUNCTIONS["sdpa"]
        assert active._of_model(nn.Linear(1, 1), "sdpa") is ALL_ATTENTION_FUNCTIONS["sdpa"]
    finally:
        del sys.modules["made_up_own"], sys.modules["made_up_bare"]


@pytest.mark.parametrize("before", ["sdpa", "eager"])
def test_the_name_says_what_was_active_and_detach_brings_it_back(before: str) -> None:
    model = decoder()
    model.set_attn_implementation(before)
    active.detach(model)
    assert active.active(model) == before == model.config._attn_implementation
    seen: list[tuple] = []

    def ours(plain: active.Plain, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: torch.Tensor):
        seen.append((plain, q.shape, lengths.flatten().tolist()))
        return torch.zeros(1, q.shape[2], q.shape[1], q.shape[3])

    ids = torch.tensor([[5, 6, 7, 8, 9]])
    expected = model(ids).logits
    active.attach(model, "test_rows", ours)
    assert model.config._attn_implementation == f"test_rows_or_{before}" and active.active(model) == before
    assert active.attached(model, "test_rows") and not active.attached(model, "test")
    assert torch.equal(model(ids).logits, expected) and not seen
    padded = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 3]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    both = model(**padded).logits
    lengths = torch.tensor([2, 3])
    model(ids, attention_mask=lengths.view(1, 1, 1, -1), use_cache=False)
    assert [one[2] for one in seen] == [[2, 3]] * 3 and seen[0][0] == (8**-0.5, 0.0, None)
    active.detach(model)
    assert model.config._attn_implementation == before and not active.attached(model, "test_rows")
    assert torch.equal(model(**padded).logits, both)


def test_what_cannot_stand_beside_is_refused() -> None:
    model = decoder()
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="^attention `flex_attention` cannot stand beside rows without padding$"):
        active.attach(model, "test_rows", lambda *given: None)
    fixed = decoder()
    fixed.set_attn_implementation = lambda name: None  # an architecture that takes none from outside
    with pytest.raises(ValueError, match="^LlamaForCausalLM takes no attention function from outside$"):
        active.attach(fixed, "test_rows", lambda *given: None)
    assert "test_rows_or_sdpa" in AttentionInterface().valid_keys()
