"""W = W0 + (alpha/r) B A: the merged model is the adapter's model, whatever the family."""

import json
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ajuste.learning import lora
from tests.invariants.shapes import DECODERS, FAMILIES, base_model, rows, with_adapter

torch.set_num_threads(1)


@torch.no_grad()
def logits(model, family):
    return model(**rows(family)).logits


VARIANTS = {"lora": {}, "rslora": {"rslora": True}, "dora": {"dora": True}}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_merged_logits_are_the_adapters(family, variant):
    base = logits(base_model(family), family)
    adapted = with_adapter(base_model(family), family, **VARIANTS[variant])
    before = logits(adapted, family)
    found = lora.compare_logits(before, logits(lora.merge(adapted), family))
    assert (before - base).abs().max() > 1e-2, "the adapter changes nothing: this test could not fail"
    assert found.max_logit_difference <= 1e-5
    assert found.equal_predictions == 1.0
    lora.refuse_unless_equal(found, 1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_merge_by_hand_from_saved_bytes_agrees_with_peft(family, variant, tmp_path):
    W0 = {name: tensor.clone() for name, tensor in base_model(family).state_dict().items()}
    adapted = with_adapter(base_model(family), family, **VARIANTS[variant])
    adapted.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    by_hand = dict(lora.merge_by_hand(W0, load_file(tmp_path / "adapter_model.safetensors"), config))
    merged = lora.merge(adapted).state_dict()
    assert lora.largest_difference(by_hand.items(), merged) <= 1e-6
    untouched = set(W0) - set(by_hand)
    assert untouched and all(torch.equal(W0[name], merged[name]) for name in untouched)
    moved = [name for name in by_hand if not torch.equal(by_hand[name], W0[name].double())]
    assert len(moved) >= 4


@pytest.mark.parametrize("variant", ["lora", "rslora"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_sum_is_done_in_float64_and_rounded_once(family, variant):
    """W = float32(W0 + s B A) to the bit, by NumPy in float64; in float32 every fourth weight would come out otherwise.
    """
    adapted = with_adapter(base_model(family), family, r=3, alpha=7, **VARIANTS[variant])
    s = 7 / 3**0.5 if variant == "rslora" else 7 / 3
    expected, rough = {}, {}
    for name, layer in adapted.base_model.model.named_modules():
        if hasattr(layer, "lora_A") and len(layer.lora_A):
            A, B, W0 = (x.weight.detach().numpy() for x in (layer.lora_A["default"], layer.lora_B["default"], layer))
            exact, short = s * (B.astype("float64") @ A.astype("float64")), np.float32(s) * (B @ A)
            update, single = (exact.T, short.T) if family == "gpt2" else (exact, short)
            expected[name], rough[name] = (W0.astype("float64") + update).astype("float32"), W0 + single
    merged = lora.merge(adapted).state_dict()
    found = {name: merged[f"{name}.weight"].numpy() for name in expected}
    other = np.concatenate([(found[name] != W).ravel() for name, W in expected.items()]).mean()
    assert other < 1e-3
    assert np.concatenate([(rough[name] != W).ravel() for name, W in expected.items()]).mean() > 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_unmerge_restores_W0(family):
    adapted = with_adapter(base_model(family), family)
    W0 = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    adapted.merge_adapter()
    moved = max((tensor - W0[name]).abs().max().item() for name, tensor in adapted.state_dict().items())
    adapted.unmerge_adapter()
    left = max((tensor - W0[name]).abs().max().item() for name, tensor in adapted.state_dict().items())
    assert moved > 1e-3 and left <= 1e-6


@pytest.mark.parametrize("family", DECODERS)
def test_greedy_64_tokens_are_equal(family):
    prompt = rows(family, n=2, length=5)
    options = {"max_new_tokens": 64, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        adapted = with_adapter(base_model(family), family)
        expected = adapted.generate(**prompt, **options)
        found = lora.merge(adapted).generate(**prompt, **options)
    assert expected.shape == (2, 5 + 64)
    assert torch.equal(expected, found)


def test_a_merge_in_bfloat16_is_rounded_once_and_its_difference_is_reported():
    adapted = with_adapter(base_model("bert"), "bert")
    before = logits(adapted, "bert")
    exact = {name: W.clone() for name, W in lora.merge(with_adapter(base_model("bert"), "bert")).state_dict().items()}
    merged = lora.merge(adapted, torch.bfloat16)
    for name, W in merged.state_dict().items():
        if W.is_floating_point():
            assert W.dtype == torch.bfloat16 and torch.equal(W, exact[name].bfloat16())
    found = lora.compare_logits(before, logits(merged, "bert"))
    assert 1e-5 < found.max_logit_difference < 0.1
    with pytest.raises(lora.ProofRefused, match=rf"{found.max_logit_difference:.3g} over 6 rows, tolerance 1e-05"):
        lora.refuse_unless_equal(found, 1e-5)


def test_one_changed_weight_is_refused():
    adapted = with_adapter(base_model("bert"), "bert")
    before = logits(adapted, "bert")
    merged = lora.merge(adapted)
    with torch.no_grad():
        merged.bert.encoder.layer[1].attention.self.query.weight[3, 5] += 1.0
    with pytest.raises(lora.ProofRefused, match="largest logit difference"):
        lora.refuse_unless_equal(lora.compare_logits(before, logits(merged, "bert")), 1e-5)


def test_a_nan_is_refused_and_so_is_another_prediction():
    good = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    broken = good.clone()
    broken[0, 0] = torch.nan
    with pytest.raises(lora.ProofRefused):
        lora.refuse_unless_equal(lora.compare_logits(good, broken), 1e9)
    with pytest.raises(lora.ProofRefused, match="50.0000% equal predictions"):
        lora.refuse_unless_equal(lora.compare_logits(good, torch.tensor([[1.0, 0.0], [0.5, 0.0]])), 1e9)
    with pytest.raises(lora.ProofRefused):
        lora.refuse_unless_equal(lora.combine([lora.compare_logits(good, m) for m in (broken, good)]), 1e9)
    with pytest.raises(ValueError, match=r"^logits of different shapes cannot be compared: \[2, 2\] and \[1, 2\]$"):
        lora.compare_logits(good, good[:1])


def test_batches_combine_to_what_all_rows_give():
    torch.manual_seed(0)
    left, right = torch.randn(10, 4, 3), torch.randn(10, 4, 3)
    parts = [lora.compare_logits(left[rows], right[rows]) for rows in (slice(0, 7), slice(7, 10))]
    assert lora.combine(parts) == pytest.approx(lora.compare_logits(left, right))


def test_merging_a_broken_adapter_is_refused():
    adapted = with_adapter(base_model("bert"), "bert")
    with torch.no_grad():
        next(p for name, p in adapted.named_parameters() if "lora_A" in name)[0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        lora.merge(adapted)


def test_by_hand_names_scale_and_what_was_trained_whole():
    """r = 2 and alpha = 3 on a base saved without its task's prefix, DoRA's lengths, and a head that replaces."""
    A, B = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0]]), torch.tensor([[1.0, 0.0], [2.0, 1.0]])
    W0 = {"layer.q.weight": torch.ones(2, 3), "head.weight": torch.zeros(1)}
    adapter = {"base_model.model.bert.layer.q.lora_A.weight": A, "base_model.model.bert.layer.q.lora_B.weight": B,
               "base_model.model.head.weight": torch.full((1,), 5.0)}  # fmt: skip
    found = dict(lora.merge_by_hand(W0, adapter, {"lora_alpha": 3}))
    assert set(found) == {"bert.layer.q.weight", "head.weight"} and found["head.weight"].tolist() == [5.0]
    assert found["head.weight"].dtype == found["bert.layer.q.weight"].dtype == torch.float64
    BA = torch.tensor([[1.0, 2.0, 0.0], [2.0, 5.0, 1.0]], dtype=torch.float64)
    assert torch.equal(found["bert.layer.q.weight"], 1 + 1.5 * BA)
    found = dict(lora.merge_by_hand(W0, adapter, {"lora_alpha": 3, "use_rslora": True}))
    assert torch.allclose(found["bert.layer.q.weight"], 1 + 3 / 2**0.5 * BA)
    m = torch.tensor([2.0, 3.0])
    dora = {**adapter, "base_model.model.bert.layer.q.lora_magnitude_vector": m}
    found = dict(lora.merge_by_hand(W0, dora, {"lora_alpha": 3, "use_dora": True}))["bert.layer.q.weight"]
    V = 1 + 1.5 * BA
    assert torch.allclose(found, m[:, None] * V / V.square().sum(1, keepdim=True).sqrt())
    wide = {"layer.q.weight": torch.ones(3, 2)}
    found = dict(lora.merge_by_hand(wide, dora, {"lora_alpha": 3, "use_dora": True, "fan_in_fan_out": True}))
    assert torch.allclose(found["bert.layer.q.weight"], (m[:, None] * V / V.square().sum(1, keepdim=True).sqrt()).T)


def test_differences_and_comparisons_by_hand():
    expected = {"a": torch.tensor([1.0, 2.0]).double(), "b": torch.tensor([0.0]).double()}
    found = {"a": torch.tensor([1.0, 2.5]), "b": torch.tensor([-0.25]), "c": 0}
    assert lora.largest_difference(expected.items(), found) == 0.5
    assert lora.largest_difference([], {}) == 0.0
    nan = {"a": torch.tensor([1.0, float("nan")]), "b": torch.tensor([7.0])}
    assert np.isnan(lora.largest_difference(expected.items(), nan)), "wherever it stands"
    with pytest.raises(ValueError, match="^the merged model lacks a and 1 more of the adapted tensors$"):
        lora.largest_difference(expected.items(), {})
    left = torch.tensor([[[3.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
    right = torch.tensor([[[1.0, 0.5], [2.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
    assert lora.compare_logits(left, right) == (2.0, 0.75, 2)
    assert lora.compare_logits(left[:0], right[:0]) == (0.0, 1.0, 0)
    three = torch.tensor([[[1.0, 0.0, 2.0], [0.0, 3.0, 1.0]]])  # of two tokens, each with three classes
    assert lora.compare_logits(three, three.flip(-1)) == (1.0, 0.5, 1)
    parts = [lora.Comparison(0.5, 1.0, 3), lora.Comparison(2.0, 0.5, 1)]
    assert lora.combine(parts) == (2.0, 3.5 / 4, 4)
    nan = lora.Comparison(float("nan"), 1.0, 1)
    for order in ([nan, parts[0]], [parts[0], nan]):
        assert np.isnan(lora.combine(order).max_logit_difference)
    lora.refuse_unless_equal(lora.Comparison(0.5, 1.0, 3), 0.5)
    lora.refuse_unless_equal(lora.Comparison(0.5, 0.9, 3), 0.5, 0.9)
    begin = "^the merged model is not the adapter: "
    said = r"largest logit difference 0.5 over 3 rows, tolerance 0.25 \(equal predictions 90.00%\)$"
    with pytest.raises(lora.ProofRefused, match=begin + said):
        lora.refuse_unless_equal(lora.Comparison(0.5, 0.9, 3), 0.25)
    said = r"90.0000% equal predictions over 3 rows, at least 100.0000% wanted \(largest difference 0.5\)$"
    with pytest.raises(lora.ProofRefused, match=begin + said):
        lora.refuse_unless_equal(lora.Comparison(0.5, 0.9, 3), 0.5)
    with pytest.raises(lora.ProofRefused):
        lora.refuse_unless_equal(lora.Comparison(0.0, float("nan"), 3), 0.5)


def test_what_is_not_plain_lora_is_refused():
    A, B, W0 = torch.zeros(4, 8), torch.zeros(6, 4), {"layer.q.weight": torch.zeros(6, 8)}
    keys = {"base_model.model.layer.q.lora_A.weight": A, "base_model.model.layer.q.lora_B.weight": B}
    assert dict(lora.merge_by_hand(W0, keys, {"lora_alpha": 8}))["layer.q.weight"].shape == (6, 8)
    for key in ("lora_bias", "alpha_pattern", "layer_replication"):
        said = rf"^this adapter uses {key}: W0 \+ \(alpha/r\)BA does not describe it$"
        with pytest.raises(ValueError, match=said):
            dict(lora.merge_by_hand(W0, keys, {"lora_alpha": 8, key: {"q": 1}}))
    with pytest.raises(ValueError, match="^this adapter uses lora_bias, alpha_pattern: "):
        dict(lora.merge_by_hand(W0, keys, {"lora_alpha": 8, "alpha_pattern": {"q": 1}, "lora_bias": True}))
    with pytest.raises(ValueError, match=r"^m must have one length for each of the 6 outputs, but is \[8\]$"):
        lora.dora_W(W0["layer.q.weight"], torch.ones(8))
    with pytest.raises(ValueError, match="^the base has no tensor layer.q.weight: the adapter .* another base$"):
        dict(lora.merge_by_hand({}, keys, {"lora_alpha": 8}))
    with pytest.raises(ValueError, match="^emb.lora_embedding_A is neither A nor B of a linear"):
        dict(lora.merge_by_hand(W0, {"base_model.model.emb.lora_embedding_A": A}, {"lora_alpha": 8}))
    with pytest.raises(ValueError, match=r"^A must be .* with r=3, but A is \[4, 8\] and B \[6, 4\]$"):
        lora.delta_W(A, B, 3, 8)


@pytest.mark.parametrize("A, B", [((3,), (6, 3)), ((3, 8), (3,)), ((4, 8), (6, 3)), ((3, 8), (6, 4))])
def test_shapes_of_one_adapter(A, B):
    with pytest.raises(ValueError, match="with r=3"):
        lora.delta_W(torch.zeros(A), torch.zeros(B), 3, 8)


def test_the_bases_tensor_under_the_names_that_it_may_have():
    own, bare, other = (torch.full((1,), float(n)) for n in range(3))
    W0 = {"plain": own, "gpt.layer.q.weight": other, "layer.q.weight": bare, "bert.layer.q.weight": own}
    assert lora.base_weight(W0, "bert.layer.q.weight") is own
    del W0["bert.layer.q.weight"]
    assert lora.base_weight(W0, "bert.layer.q.weight") is bare
    del W0["layer.q.weight"]
    assert lora.base_weight(W0, "bert.layer.q.weight") is other
    with pytest.raises(ValueError, match="^the base has no tensor bert.layer.k.weight: "):
        lora.base_weight(W0, "bert.layer.k.weight")
    assert lora.combine([lora.Comparison(0.1, 1.0, 1)]).max_logit_difference == 0.1  # float64


def test_a_merge_says_nothing():
    """PEFT warns that what was merged layer by layer is merged already."""
    adapted = with_adapter(base_model("bert"), "bert")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        lora.merge(adapted)
    assert not [str(one.message) for one in said if "merged" in str(one.message)]
