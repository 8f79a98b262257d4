"""A float32 output layer above a bfloat16 base: longer logits for sampler and trainer, a smaller gap between them."""

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from ajuste.learning.layers.float32_head import Float32Head
from ajuste.learning.rl.rollout import sample
from ajuste.learning.rl.sampler_gap import gap_figures
from ajuste.models.one_base import OneBase, Settings

torch.set_num_threads(1)
PROMPTS = [[1, 40, 41, 42, 5 + i, *range(20, 20 + i % 3)] for i in range(16)]
T = 0.7


def one_base(family: str, dtype: torch.dtype, **settings: object) -> OneBase:
    """Logits of 21 +- 1, as a trained model's have a level that no probability shows: bfloat16 rounds them to 1/8."""
    config, kind = (LlamaConfig, LlamaForCausalLM) if family == "llama" else (MistralConfig, MistralForCausalLM)
    torch.manual_seed(0)
    model = kind(
        config(vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
               num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.05)
    )  # fmt: skip
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_().add_(2)
        model.lm_head.weight.normal_(std=1 / 8).add_(24 / 64)
    one = OneBase(model.to(dtype), Settings(r=4, **settings))
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return one


def drawn_and_learnt(one: OneBase) -> tuple:
    """(what was sampled, the trainer's log-probabilities of it)."""
    found = sample(one, PROMPTS, 12, [], 0, T, torch.Generator().manual_seed(0))
    with torch.no_grad():
        return found, one.policy_and_values(PROMPTS, found.responses, found.mask, T)[0]


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_the_gap_of_a_bfloat16_policy_falls(family: str) -> None:
    """Packed and plain sampling alike."""
    gaps = []
    for float32_head in (False, True):
        found, learnt = drawn_and_learnt(one_base(family, torch.bfloat16, float32_head=float32_head))
        gaps.append(gap_figures(learnt, found.log_probs, found.mask, 0.2))
    before, after = gaps
    for figure in ("sampler_gap", "sampler_gap_mean", "sampler_gap_p99"):
        assert after[figure] < 0.6 * before[figure], (figure, before, after)
    assert before["sampler_gap"] > 0.1  # of a logit at the edge of two multiples of 1/8, divided by the temperature


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_on_a_float32_base_it_changes_nothing(family: str) -> None:
    plain, other = (drawn_and_learnt(one_base(family, torch.float32, float32_head=asked)) for asked in (False, True))
    assert torch.equal(plain[0].responses, other[0].responses)
    assert torch.allclose(plain[0].log_probs, other[0].log_probs, atol=1e-6)
    assert torch.equal(plain[1], other[1])


def test_logits_are_those_of_the_hidden_states_in_float32() -> None:
    """Of the trainer, and of the model's own forward, which samples where no packed form is known."""
    one = one_base("mistral", torch.bfloat16, float32_head=True)
    inner = one.model.get_base_model()
    ids = torch.tensor([[*PROMPTS[0], 7, 8, 9]])
    with torch.no_grad():
        h = inner.base_model(ids).last_hidden_state
        expected = h.float() @ inner.lm_head.weight.T
        logits = inner(ids).logits
        learnt = one.policy_and_values([PROMPTS[0]], ids[:, -3:], torch.ones(1, 3, dtype=torch.bool), T)[0]
    assert h.dtype == torch.bfloat16 and logits.dtype == torch.float32
    assert torch.allclose(logits, expected, atol=1e-4)
    log_p = F.log_softmax(expected[0, -4:-1] / T, -1).gather(1, ids[0, -3:, None])[:, 0]
    assert torch.allclose(learnt[0], log_p, atol=0.05)  # h itself is bfloat16 and comes from another way


def test_its_gradient_is_that_of_the_formula() -> None:
    """dL/dh = (one-hot(y) - p) W / T, through the base into the adapter, within bfloat16 of a float32 base's."""
    gradients = []
    for dtype, float32_head in ((torch.float32, False), (torch.bfloat16, True)):
        one = one_base("llama", dtype, float32_head=float32_head)
        responses = torch.tensor([[7, 8, 9]] * len(PROMPTS))
        log_p, _, _ = one.policy_and_values(PROMPTS, responses, torch.ones_like(responses, dtype=torch.bool), T)
        log_p.sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in one.policy_parameters()]))
    assert F.cosine_similarity(*gradients, dim=0) > 0.99


def test_the_base_keeps_its_weights_and_an_adapter_stays_off_the_head() -> None:
    one = one_base("llama", torch.bfloat16, float32_head=True)
    inner = one.model.get_base_model()
    assert isinstance(inner.lm_head, Float32Head) and inner.lm_head.weight.dtype == torch.float32
    assert inner.get_input_embeddings().weight.dtype == torch.bfloat16
    assert not any("lm_head" in name for name in one.trainable_state())
    assert not any("lm_head" in name for name in inner.state_dict())


def test_it_is_the_linear_layer_with_everything_in_float32() -> None:
    torch.manual_seed(0)
    for bias in (True, False):
        head = torch.nn.Linear(8, 5, bias=bias).bfloat16()
        ours, h = Float32Head(head), torch.randn(3, 2, 8).bfloat16()
        expected = h.float() @ head.weight.float().T + (head.bias.float() if bias else 0)
        assert torch.allclose(ours(h), expected, atol=1e-6) and ours(h).dtype == torch.float32
        assert ours.state_dict() == {} and not ours.weight.requires_grad and ours.weight.dtype == torch.float32
        assert (ours.bias is not None) is bias and dict(ours.named_buffers()).keys() == {"weight", "bias"} - (
            set() if bias else {"bias"})
    assert not list(Float32Head(torch.nn.Linear(2, 2)).parameters())
    assert Float32Head(torch.nn.Embedding(5, 8)).bias is None, "a weight alone is enough"
