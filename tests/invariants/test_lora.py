"""What holds for the update (alpha/r) B A itself: at the start, at full rank, and how many parameters it has."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, RobertaConfig

from ajuste.learning import lora
from tests.invariants.shapes import FAMILIES, base_model, rows, with_adapter

torch.set_num_threads(1)


@pytest.mark.parametrize("family", FAMILIES)
def test_at_the_start_lora_is_the_base_bit_for_bit(family):
    with torch.no_grad():
        expected = base_model(family)(**rows(family)).logits
        found = with_adapter(base_model(family), family, trained=False)(**rows(family)).logits
    assert torch.equal(expected, found)


@pytest.mark.parametrize("family", FAMILIES)
def test_at_the_start_only_B_has_a_gradient(family):
    adapted = with_adapter(base_model(family), family, trained=False).train()
    adapted(**rows(family)).logits.square().sum().backward()
    gradients = {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad}
    A = [grad for name, grad in gradients.items() if "lora_A" in name]
    B = [grad for name, grad in gradients.items() if "lora_B" in name]
    assert len(A) == len(B) >= 4
    assert all(not grad.any() for grad in A)
    assert all(grad.any() for grad in B)
    frozen = [p for p in adapted.parameters() if not p.requires_grad]
    assert frozen and all(p.grad is None for p in frozen)


@pytest.mark.parametrize("d, k", [(6, 9), (9, 6)])
def test_full_rank_lora_represents_any_update(d, k):
    """With r = min(d, k) every update has an exact A and B (by its singular values); with one rank less it has not."""
    torch.manual_seed(0)
    wanted, alpha = torch.randn(d, k, dtype=torch.float64), 3.0

    def nearest(r):
        U, S, V = torch.linalg.svd(wanted, full_matrices=False)
        return lora.delta_W(V[:r], U[:, :r] * S[:r] * r / alpha, r, alpha), S

    exact, S = nearest(min(d, k))
    assert torch.allclose(exact, wanted, atol=1e-12)
    short, _ = nearest(min(d, k) - 1)
    assert torch.linalg.matrix_norm(short - wanted, 2).item() == pytest.approx(S[-1].item())   # Eckart-Young


def test_full_rank_lora_learns_any_linear_map():
    """The same by gradient descent, through PEFT: the error goes to zero at r = min(d, k) and cannot at r = 1."""
    torch.manual_seed(0)
    x, wanted = torch.randn(256, 5), torch.randn(4, 5)
    y = x @ wanted.T

    def error(r):
        torch.manual_seed(1)
        net = torch.nn.Sequential(torch.nn.Linear(5, 4, bias=False))
        adapted = get_peft_model(net, LoraConfig(r=r, lora_alpha=r, target_modules=["0"]))
        optimiser = torch.optim.Adam(adapted.parameters(), lr=0.05)
        for _ in range(600):
            optimiser.zero_grad()
            loss = (adapted(x) - y).square().mean()
            loss.backward()
            optimiser.step()
        return loss.item()

    assert error(4) < 1e-8 < 0.1 < error(1)


def test_delta_W_against_a_loop():
    torch.manual_seed(0)
    r, d, k, alpha = 3, 5, 7, 2.0
    A, B = torch.randn(r, k), torch.randn(d, r)
    for rslora, factor in ((False, alpha / r), (True, alpha / r**0.5)):
        found = lora.delta_W(A, B, r, alpha, rslora=rslora)
        for i in range(d):
            for j in range(k):
                expected = factor * sum(B[i, m].item() * A[m, j].item() for m in range(r))
                assert found[i, j].item() == pytest.approx(expected, rel=1e-9)
        assert torch.equal(found.T, lora.delta_W(A, B, r, alpha, fan_in_fan_out=True, rslora=rslora))
    assert torch.equal(lora.delta_W(A, B, r, alpha), lora.delta_W(A, B, r, alpha, rslora=False))


def test_the_lectures_exercise():
    trainable, all_of_W0 = lora.parameters(8, 12288, 12288), 12288 * 12288
    assert (trainable, all_of_W0) == (196_608, 150_994_944)
    assert f"{trainable / all_of_W0:.4%}" == "0.1302%"


@pytest.mark.parametrize("r, count", [(1, 4_718_592), (2, 9_437_184), (4, 18_874_368), (8, 37_748_736)])
def test_gpt3_with_lora_on_Wq_and_Wv(r, count):
    assert 96 * 2 * lora.parameters(r, 12288, 12288) == count


def trainable(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_roberta_base_with_lora():
    with torch.device("meta"):
        config = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, num_labels=2)
        model = AutoModelForSequenceClassification.from_config(config)
        plain = {"r": 8, "lora_alpha": 16, "target_modules": ["query", "value"]}
        adapted = get_peft_model(model, LoraConfig(**plain))
        assert trainable(adapted) == 12 * 2 * lora.parameters(8, 768, 768) == 294_912
        model = AutoModelForSequenceClassification.from_config(config)
        adapted = get_peft_model(model, LoraConfig(**plain, modules_to_save=["classifier"]))
        assert trainable(adapted) == 294_912 + 592_130 == 887_042


def gpt2_count(V, context, d, L):
    return V * d + context * d + L * (12 * d * d + 13 * d) + 2 * d


@pytest.mark.parametrize("d, L, heads, count", [
    (768, 12, 12, 124_439_808), (1024, 24, 16, 354_823_168), (1280, 36, 20, 774_030_080), (1600, 48, 25, 1_557_611_200),
])
def test_gpt2_counts(d, L, heads, count):
    assert gpt2_count(50257, 1024, d, L) == count
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(GPT2Config(n_embd=d, n_layer=L, n_head=heads))
    assert sum(p.numel() for p in model.parameters()) == count       # parameters() counts tied embeddings once


@pytest.mark.parametrize("d, L, heads, count", [(1024, 24, 16, 393_216), (1280, 36, 20, 737_280)])
def test_gpt2_with_lora_on_q_and_v(d, L, heads, count):
    """Wq and Wv each on their own, as the paper counts; PEFT adapts the fused c_attn: r(3d + d) in place of 2 r(d + d),
    which is the same number."""
    assert L * 2 * lora.parameters(4, d, d) == count
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(GPT2Config(n_embd=d, n_layer=L, n_head=heads))
        adapted = get_peft_model(
            model, LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn"], fan_in_fan_out=True)
        )
    assert trainable(adapted) == L * lora.parameters(4, 3 * d, d) == count


def test_gpt3_count_and_memory_of_full_fine_tuning():
    count = gpt2_count(50257, 2048, 12288, 96)
    assert count == 174_604_259_328
    adam = 2 + 2 + 4 + 4 + 4                                  # bytes: weights, gradients, master weights, m, v
    assert 175e9 * adam == 2.80e12 and round(175e9 * adam / 2**30) == 2608
    adapter = 96 * 2 * lora.parameters(4, 12288, 12288)
    assert round((175e9 * 2 + adapter * adam) / 1e9, 1) == 350.3       # frozen base in 16 bits, Adam on A and B alone
    assert 175e9 * 2 / 1e9 == 350.0 and round(adapter * 2 / 1e6) == 38  # the paper prints 350 GB -> 35 MB


@pytest.mark.parametrize("transposed", [False, True])
def test_delta_of_fused_experts_against_a_loop(transposed):
    """Expert e has r rows of A, and every E-th column of B; its own product is its update."""
    torch.manual_seed(0)
    E, r, d, k, alpha = 3, 2, 5, 4, 3.0
    A, B = torch.randn(E * r, k), torch.randn(d, r * E)
    W0 = torch.zeros(E, k, d) if transposed else torch.zeros(E, d, k)
    for rslora, factor in ((False, alpha / r), (True, alpha / r**0.5)):
        found = lora.delta_experts(A, B, W0, r, alpha, transposed, rslora)
        assert found.shape == W0.shape and found.dtype == torch.float64
        for e in range(E):
            for i in range(d):
                for j in range(k):
                    expected = factor * sum(B[i, m * E + e].item() * A[e * r + m, j].item() for m in range(r))
                    here = found[e, j, i] if transposed else found[e, i, j]
                    assert here.item() == pytest.approx(expected, rel=1e-9)
    assert torch.equal(lora.delta_experts(A, B, torch.zeros(E, d, k), r, alpha),
                       lora.delta_experts(A, B, torch.zeros(E, k, d), r, alpha, True, False).transpose(1, 2))
    said = r"^A \[6, 4\] and B \[5, 6\] are no adapter of rank 3 of \[3, {}\]$"
    with pytest.raises(ValueError, match=said.format("4, 5" if transposed else "5, 4")):
        lora.delta_experts(A, B, W0, 3, alpha, transposed)
    for A_wrong, B_wrong in ((A[:, 1:], B), (A, B[1:]), (A[1:], B), (A, B[:, 1:])):
        with pytest.raises(ValueError, match="are no adapter of rank 2"):
            lora.delta_experts(A_wrong, B_wrong, W0, r, alpha, transposed)


def test_experts_of_an_adapter_are_found_by_their_names():
    """Two parameters of one module: the outer adapter is the last one's, the inner (`base_layer`) the first one's."""
    torch.manual_seed(0)
    r, alpha = 2, 3.0
    up, down = torch.randn(2, 3, 4), torch.randn(2, 4, 3)  # down is [E, k, d]: transposed
    W0 = {"moe.experts.up": up, "moe.experts.down": down, "moe.gate.weight": torch.ones(2, 3),
          "other.experts.up": torch.zeros(2, 3, 4)}  # fmt: skip
    shapes = {"moe.experts.base_layer": (3, 4), "moe.experts": (3, 4)}
    AB = {layer: (torch.randn(2 * r, k), torch.randn(d, r * 2)) for layer, (d, k) in shapes.items()}
    adapter = {f"base_model.model.{layer}.lora_{name}.weight": tensor
               for layer, pair in AB.items() for name, tensor in zip("AB", pair, strict=True)}  # fmt: skip
    config = {"r": r, "lora_alpha": alpha, "target_parameters": ["experts.up", "experts.down"]}
    for more in ({}, {"use_rslora": True}):
        found = dict(lora.merge_by_hand(W0, adapter, {**config, **more}, ["moe.experts.down"]))
        assert set(found) == {"moe.experts.up", "moe.experts.down"}
        for name, layer, transposed in (("up", "moe.experts.base_layer", False), ("down", "moe.experts", True)):
            W = W0[f"moe.experts.{name}"]
            expected = W.double() + lora.delta_experts(*AB[layer], W, r, alpha, transposed, bool(more))
            assert torch.equal(found[f"moe.experts.{name}"], expected)


def test_parameters_of_an_adapted_matrix():
    assert lora.parameters(4, 3, 5) == 4 * 3 + 4 * 5
    assert lora.scale(4, 8.0) == 2.0 and lora.scale(4, 8.0, True) == 4.0
