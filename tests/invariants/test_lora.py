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
