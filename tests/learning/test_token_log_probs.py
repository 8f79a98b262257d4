"""ajuste/learning/rl/token_log_probs.py against torch's own log-softmax and autograd."""

import pytest
import torch

from ajuste.learning.rl.token_log_probs import Head, log_probs_of_logits, token_log_probs


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 4e-2)])
def test_equals_log_softmax(dtype, tolerance, temperature):
    torch.manual_seed(0)
    h, W = torch.randn(150, 12, dtype=dtype, requires_grad=True), torch.randn(31, 12, dtype=dtype)
    targets, g = torch.randint(0, 31, (150,)), torch.randn(150)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    z = (h @ W.t()).to(kind).div(temperature).log_softmax(1)
    expected = z.gather(1, targets[:, None])[:, 0]
    (expected_gradient,) = torch.autograd.grad((expected * g).sum(), h)
    log_p, entropy = token_log_probs(h, Head(W), targets, temperature)
    (gradient,) = torch.autograd.grad((log_p * g).sum(), h)
    assert log_p.dtype == kind and not entropy.requires_grad
    assert (log_p - expected).abs().max() < min(tolerance, 1e-5)
    assert (entropy + (z.exp() * z).sum(1)).abs().max() < min(tolerance, 1e-5)
    assert (gradient - expected_gradient).abs().max() < tolerance * expected_gradient.abs().max()


def test_the_same_bits_with_and_without_gradients():
    torch.manual_seed(0)
    h, W, targets = torch.randn(70, 12, requires_grad=True), torch.randn(31, 12), torch.randint(0, 31, (70,))
    learnt = token_log_probs(h, Head(W), targets, 0.7)
    with torch.no_grad():
        seen = token_log_probs(h, Head(W), targets, 0.7)
    assert all(torch.equal(a, b) for a, b in zip(learnt, seen, strict=True))


def test_certainty_is_finite_and_a_temperature_of_zero_refused():
    h, W = torch.tensor([[1e4], [-1e4]]), torch.tensor([[1.0], [-1.0]])
    log_p, entropy = token_log_probs(h, Head(W), torch.tensor([0, 0]), 1.0)
    assert log_p.tolist() == [0.0, -2e4] and entropy.tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="^the temperature of log-probabilities must be above 0, not 0.0$"):
        token_log_probs(h, Head(W), torch.tensor([0, 0]), 0.0)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scale, cap", [(1.0, None), (0.25, None), (1.0, 1.5), (3.0, 1.5)])
def test_bias_scale_and_soft_cap_of_the_head(bias: bool, scale: float, cap: float | None):
    torch.manual_seed(0)
    h, W = torch.randn(130, 12, dtype=torch.float64, requires_grad=True), torch.randn(31, 12, dtype=torch.float64)
    b = torch.randn(31, dtype=torch.float64) if bias else None
    targets, g = torch.randint(0, 31, (130,)), torch.randn(130)
    logits = torch.nn.functional.linear(h, W, b) * scale
    logits = logits if cap is None else torch.tanh(logits / cap) * cap
    expected, expected_entropy = log_probs_of_logits(logits, targets, 0.7)
    z = (logits / 0.7).log_softmax(1)
    assert torch.allclose(expected, z.gather(1, targets[:, None])[:, 0])
    assert torch.allclose(expected_entropy, -(z.exp() * z).sum(1))
    (expected_gradient,) = torch.autograd.grad((expected * g).sum(), h)
    log_p, entropy = token_log_probs(h, Head(W, b, scale, cap), targets, 0.7)
    (gradient,) = torch.autograd.grad((log_p * g).sum(), h)
    assert torch.allclose(log_p, expected) and torch.allclose(entropy, expected_entropy)
    assert torch.allclose(gradient, expected_gradient)
    with pytest.raises(ValueError, match="above 0"):
        log_probs_of_logits(logits, targets, 0.0)


@pytest.mark.parametrize("scale", [2.0, 0.5])
def test_a_scale_multiplies_logits_and_gradient(scale):
    torch.manual_seed(0)
    h, W = torch.randn(70, 5, dtype=torch.float64, requires_grad=True), torch.randn(9, 5, dtype=torch.float64)
    targets, g = torch.randint(0, 9, (70,)), torch.randn(70, dtype=torch.float64)
    expected = (scale * h @ W.t() / 0.7).log_softmax(1).gather(1, targets[:, None])[:, 0]
    found, _ = token_log_probs(h, Head(W, scale=scale), targets, 0.7)
    assert torch.allclose(found, expected)
    (wanted,), (gradient,) = (torch.autograd.grad((x * g).sum(), h) for x in (expected, found))
    assert torch.allclose(gradient, wanted)
