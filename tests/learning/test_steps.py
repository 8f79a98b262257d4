"""The order of minibatches, the learning rate's course, and the two Adams."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ajuste.learning.rl.steps import Adam, linear_to_zero, minibatches, schedule


def test_every_row_is_used_once_an_epoch_in_an_order_of_its_own() -> None:
    orders = {}
    for update in range(3):
        for epoch in range(2):
            pieces = minibatches(10, 4, 7, update, epoch)
            assert sorted(torch.cat(pieces).tolist()) == list(range(10))
            assert [len(piece) for piece in pieces] == [3, 3, 2, 2]
            orders[update, epoch] = torch.cat(pieces).tolist()
    assert len({tuple(order) for order in orders.values()}) == 6
    assert torch.cat(minibatches(10, 4, 7, 1, 1)).tolist() == orders[1, 1]  # known from its numbers alone
    assert torch.cat(minibatches(10, 4, 8, 1, 1)).tolist() != orders[1, 1]
    with pytest.raises(ValueError, match="^3 rows cannot make 4 minibatches$"):
        minibatches(3, 4, 0, 0, 0)


def test_one_minibatch_and_as_many_as_rows() -> None:
    assert [len(piece) for piece in minibatches(3, 1, 0, 0, 0)] == [3]
    assert [len(piece) for piece in minibatches(3, 3, 0, 0, 0)] == [1, 1, 1]
    assert torch.cat(minibatches(9, 2, 4, 5, 6)).tolist() == np.random.default_rng([4, 5, 6]).permutation(9).tolist()
    with pytest.raises(ValueError, match="^3 rows cannot make 0 minibatches$"):
        minibatches(3, 0, 0, 0, 0)


def test_the_learning_rate_falls_in_a_line_to_zero() -> None:
    assert [linear_to_zero(update, 5) for update in range(6)] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0.0])
    assert linear_to_zero(9, 5) == 0.0 and schedule("cosine", 9, 5) == 0.0


def test_and_along_a_cosine_as_transformers_has_it() -> None:
    from transformers import get_scheduler

    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    for name in ("linear", "cosine"):
        theirs = get_scheduler(name, optimiser, num_warmup_steps=0, num_training_steps=7).lr_lambdas[0]
        assert [schedule(name, u, 7) for u in range(8)] == pytest.approx([theirs(u) for u in range(8)], abs=1e-12)


def tensorflow_adam(gradients: list[float], lr: float, eps: float, b1: float = 0.9, b2: float = 0.999) -> float:
    """tf.train.AdamOptimizer: alpha_t = lr sqrt(1 - b2^t) / (1 - b1^t); x -= alpha_t m / (sqrt(v) + eps)."""
    x = m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        x -= lr * math.sqrt(1 - b2**t) / (1 - b1**t) * m / (math.sqrt(v) + eps)
    return x


def moved(gradients: list[float], mode: str, lr: float = 0.01, eps: float = 1e-5) -> float:
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimiser = Adam([parameter], lr, eps=eps, eps_mode=mode)
    for g in gradients:
        parameter.grad = torch.tensor([g], dtype=torch.float64)
        optimiser.step()
    return parameter.item()


def test_tensorflows_adam_has_its_epsilon_outside_the_correction() -> None:
    gradients = [3e-5, -1e-5, 2e-5, 4e-6, 1e-5]
    assert moved(gradients, "tf") == pytest.approx(tensorflow_adam(gradients, 0.01, 1e-5), rel=1e-9)
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    torchs = torch.optim.Adam([parameter], 0.01, eps=1e-5)
    for g in gradients:
        parameter.grad = torch.tensor([g], dtype=torch.float64)
        torchs.step()
    assert moved(gradients, "torch") == pytest.approx(parameter.item(), rel=1e-12)


def test_unsaid_settings_are_torchs_own_without_decay() -> None:
    parameter, theirs = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    mine, other = Adam([parameter], 0.01), torch.optim.Adam([theirs], 0.01)
    for g in (1e-8, -3e-8):
        parameter.grad, theirs.grad = torch.full((2,), g), torch.full((2,), g)
        mine.step()
        other.step()
    assert torch.equal(parameter, theirs) and mine.defaults["eps"] == 1e-8 and mine.defaults["betas"] == (0.9, 0.999)


@pytest.mark.parametrize("mode", ["torch", "tf"])
def test_betas_are_taken_and_a_closure_is_asked(mode: str) -> None:
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimiser = Adam([parameter], 0.01, betas=(0.5, 0.7), eps=1e-3, eps_mode=mode)
    gradients = [0.2, -0.1, 0.4]

    def closure() -> float:
        parameter.grad = torch.tensor([gradients[closure.calls]], dtype=torch.float64)
        closure.calls += 1
        return 1.5

    closure.calls = 0
    assert [optimiser.step(closure) for _ in gradients] == [1.5] * 3
    if mode == "tf":
        assert parameter.item() == pytest.approx(tensorflow_adam(gradients, 0.01, 1e-3, 0.5, 0.7), rel=1e-9)
    else:
        m = v = x = 0.0
        for t, g in enumerate(gradients, start=1):
            m, v = 0.5 * m + 0.5 * g, 0.7 * v + 0.3 * g * g
            x -= 0.01 * m / (1 - 0.5**t) / (math.sqrt(v / (1 - 0.7**t)) + 1e-3)
        assert parameter.item() == pytest.approx(x, rel=1e-9)


def test_a_parameter_without_a_gradient_stays_and_does_not_count_as_a_step() -> None:
    one, still = nn.Parameter(torch.zeros(1, dtype=torch.float64)), nn.Parameter(torch.ones(1))
    optimiser = Adam([still, one], 0.01, eps=1e-5, eps_mode="tf")
    for g in (3e-5, -1e-5):
        one.grad = torch.tensor([g], dtype=torch.float64)
        optimiser.step()
    assert still.item() == 1.0 and one.item() == pytest.approx(tensorflow_adam([3e-5, -1e-5], 0.01, 1e-5), rel=1e-9)


def test_the_first_step_by_its_closed_form_is_larger_with_torchs_epsilon() -> None:
    """lr |g| / (|g| + eps), and with TensorFlow's lr |g| / (|g| + eps / sqrt(1 - beta2))."""
    g, eps = 1e-5, 1e-5
    assert moved([g], "torch") == pytest.approx(-0.01 * g / (g + eps), rel=1e-9)
    assert moved([g], "tf") == pytest.approx(-0.01 * g / (g + eps / math.sqrt(1 - 0.999)), rel=1e-9)
    assert abs(moved([g], "torch")) > 10 * abs(moved([g], "tf"))


@pytest.mark.parametrize("mode", ["torch", "tf"])
def test_the_optimiser_goes_on_from_its_state_to_the_bit(mode: str) -> None:
    gradients = torch.randn(6, 3) * 1e-4

    def run(optimiser: Adam, parameter: nn.Parameter, rows: Tensor) -> None:
        for row in rows:
            parameter.grad = row.clone()
            optimiser.step()

    whole = nn.Parameter(torch.ones(3))
    run(Adam([whole], 1e-3, eps=1e-5, eps_mode=mode), whole, gradients)
    half = nn.Parameter(torch.ones(3))
    first = Adam([half], 1e-3, eps=1e-5, eps_mode=mode)
    run(first, half, gradients[:3])
    rest = nn.Parameter(half.detach().clone())
    second = Adam([rest], 1e-3, eps=1e-5, eps_mode=mode)
    second.load_state_dict(first.state_dict())
    run(second, rest, gradients[3:])
    assert torch.equal(rest, whole)
