"""The losses of PPO by hand, the promise that micro-batches change nothing, and the two Adams."""

import math

import pytest
import torch
from torch import Tensor, nn

from ajuste.learning.rl.advantages import Options, episode_targets
from ajuste.learning.rl.ppo import (
    Adam,
    linear_to_zero,
    minibatches,
    policy_loss,
    policy_metrics,
    schedule,
    total_loss,
    value_loss,
    value_metrics,
)

ONE = torch.ones(1, 1, dtype=torch.bool)


def token(x: float) -> Tensor:
    return torch.tensor([[x]])


# --- policy loss ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (0.5, 1.0, -0.5, True),  # worse than before: pulled back up
        (1.0, 1.0, -1.0, True),
        (1.5, 1.0, -1.2, False),  # better, and beyond the clip: nothing more to gain
        (0.5, -1.0, 0.8, False),
        (1.0, -1.0, 1.0, True),
        (1.5, -1.0, 1.5, True),  # a bad token made likelier: no mercy
    ],
)
def test_the_clipped_surrogate_by_hand(ratio: float, advantage: float, loss: float, slope: bool) -> None:
    log_probs = token(math.log(ratio) - 2.0).requires_grad_()
    got = policy_loss(log_probs, token(-2.0), token(advantage), ONE, 0.2, 1)
    assert got.item() == pytest.approx(loss, abs=1e-6)
    got.backward()
    assert log_probs.grad.item() == pytest.approx(-advantage * ratio if slope else 0.0, abs=1e-6)


@pytest.mark.parametrize(("ratio", "advantage", "loss"), [(5.0, -1.0, 3.0), (2.0, -1.0, 2.0), (5.0, 1.0, -1.2)])
def test_dual_clip_bounds_the_loss_of_a_bad_token(ratio: float, advantage: float, loss: float) -> None:
    got = policy_loss(token(math.log(ratio)), token(0.0), token(advantage), ONE, 0.2, 1, dual_clip=3.0)
    assert got.item() == pytest.approx(loss, abs=1e-6)


def test_at_the_first_minibatch_the_gradient_is_that_of_the_policy_gradient() -> None:
    """ratio = 1: the loss is -mean(A), its gradient by each log-probability -A / N."""
    log_probs, advantages = torch.randn(3, 4).requires_grad_(), torch.randn(3, 4)
    mask = torch.arange(4) < torch.tensor([4, 1, 3])[:, None]
    loss = policy_loss(log_probs, log_probs.detach(), advantages, mask, 0.2, mask.sum())
    loss.backward()
    assert torch.allclose(loss, -advantages[mask].mean())
    assert torch.allclose(log_probs.grad, -advantages * mask / mask.sum())


# --- value loss -------------------------------------------------------------------------------------------------------


def test_the_clipped_value_loss_of_three_tokens_by_hand() -> None:
    """V 1.0, 0.5, -1.0, before 0.5, 0.4, 0.0, returns 0.0, 1.0, -2.0, clip 0.2.

    Clipped to 0.7, 0.5, -0.2. Squares 1, 0.25, 1; clipped 0.49, 0.25, 3.24; the larger 1, 0.25, 3.24; half the mean.
    """
    values = torch.tensor([[1.0, 0.5, -1.0]]).requires_grad_()
    old, returns = torch.tensor([[0.5, 0.4, 0.0]]), torch.tensor([[0.0, 1.0, -2.0]])
    loss = value_loss(values, old, returns, torch.ones(1, 3).bool(), 0.2, 3)
    assert loss.item() == pytest.approx(0.5 * (1 + 0.25 + 3.24) / 3, abs=1e-6)
    loss.backward()
    assert torch.allclose(values.grad, torch.tensor([[1.0, -0.5, 0.0]]) / 3, atol=1e-6)  # 0 where the clip is larger
    plain = value_loss(values.detach(), old, returns, torch.ones(1, 3).bool(), None, 3)
    assert plain.item() == pytest.approx(0.5 * (1 + 0.25 + 1) / 3, abs=1e-6)


# --- the whole minibatch ----------------------------------------------------------------------------------------------


class Chain(nn.Module):
    """Log-probabilities, entropy and values of responses, each token predicted from the one before it alone."""

    def __init__(self, vocabulary: int = 7, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head, self.value = (
            nn.Embedding(vocabulary, width),
            nn.Linear(width, vocabulary),
            nn.Linear(width, 1),
        )

    def forward(self, responses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = torch.tanh(self.embed(nn.functional.pad(responses, (1, 0))))
        log_p = torch.log_softmax(self.head(hidden[:, :-1]), dim=-1)
        taken = log_p.gather(2, responses[..., None])[..., 0]
        return taken, -(log_p.exp() * log_p).sum(-1), self.value(hidden)[..., 0]


def rollout(rows: int = 8, width: int = 6) -> tuple[Chain, dict[str, Tensor], Tensor]:
    """A model, a batch that an older one sampled, and the number of its response tokens; lengths 1 to 6."""
    model, generator = Chain(), torch.Generator().manual_seed(2)
    responses = torch.randint(0, 7, (rows, width), generator=generator)
    mask = torch.arange(width) < (1 + torch.arange(rows) % width)[:, None]
    noise = torch.randn(rows, width, generator=generator)
    with torch.no_grad():
        log_probs, _, values = model(responses)
    old, old_values = log_probs + 0.3 * noise, values + 0.3 * torch.randn(rows, width + 1, generator=generator)
    scores = torch.randn(rows, generator=generator)
    targets = episode_targets(noise, scores, old_values, mask, torch.ones(rows).bool(), 0.1, Options())
    batch = {
        "responses": responses,
        "mask": mask,
        "old": old,
        "old_values": old_values,
        "advantages": targets.advantages,
    }
    return model, batch | {"returns": targets.returns, "value_mask": targets.value_mask}, mask.sum()


def step(model: Chain, batch: dict[str, Tensor], pieces: int, whole: bool = True) -> tuple[float, Tensor]:
    """Loss and gradient of one minibatch in so many micro-batches; not `whole`: the mean of each piece's own mean."""
    model.zero_grad()
    items = float(batch["mask"].sum())
    total = 0.0
    for rows in torch.arange(8).chunk(pieces):
        some = {name: tensor[rows] for name, tensor in batch.items()}
        log_probs, _, values = model(some["responses"])
        mask, value_mask = some["mask"], some["value_mask"]
        n = items if whole else float(mask.sum()) * pieces
        loss = total_loss(
            policy_loss(log_probs, some["old"], some["advantages"], mask, 0.2, n),
            value_loss(values, some["old_values"], some["returns"], value_mask, 0.2, n),
            0.1,
        )
        loss.backward()
        total += loss.item()
    return total, torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("pieces", [2, 4, 8])
def test_micro_batches_of_unequal_lengths_give_the_same_gradient(pieces: int) -> None:
    """1x8 == 2x4 == 8x1 within 1e-6; a mean over each micro-batch does not."""
    model, batch, _ = rollout()
    loss, gradient = step(model, batch, 1)
    other_loss, other = step(model, batch, pieces)
    assert other_loss == pytest.approx(loss, abs=1e-6)
    assert (other - gradient).abs().max() <= 1e-6
    _, naive = step(model, batch, pieces, whole=False)
    assert (naive - gradient).abs().max() > 1e-3


def test_metrics_of_micro_batches_add_up() -> None:
    model, batch, items = rollout()
    with torch.no_grad():
        log_probs, entropy, values = model(batch["responses"])

    def metrics(rows: slice) -> dict[str, float]:
        mask, value_mask = batch["mask"][rows], batch["value_mask"][rows]
        old, advantages = batch["old"][rows], batch["advantages"][rows]
        return policy_metrics(log_probs[rows], old, entropy[rows], advantages, mask, 0.2, float(items)) | value_metrics(
            values[rows], batch["old_values"][rows], batch["returns"][rows], value_mask, 0.2, float(items)
        )

    whole, parts = metrics(slice(0, 8)), [metrics(slice(i, i + 2)) for i in range(0, 8, 2)]
    for name, value in whole.items():
        together = max(p[name] for p in parts) if name == "ratio_max" else sum(p[name] for p in parts)
        assert together == pytest.approx(value, abs=1e-6), name
    ratio = (log_probs - batch["old"])[batch["mask"]].exp()
    assert whole["ratio_max"] == pytest.approx(ratio.max().item(), rel=1e-6)
    assert whole["ratio_mean"] == pytest.approx(ratio.mean().item(), rel=1e-5)
    assert whole["approx_kl"] == pytest.approx((ratio.log() ** 2 / 2).mean().item(), rel=1e-5)
    advantages = batch["advantages"][batch["mask"]]
    decided = ((advantages > 0) & (ratio > 1.2)) | ((advantages < 0) & (ratio < 0.8))
    assert 0 < whole["clip_fraction"] == pytest.approx(decided.float().mean().item(), abs=1e-6)
    assert whole["entropy"] == pytest.approx(entropy[batch["mask"]].mean().item(), rel=1e-5)


def test_padding_columns_change_no_loss_and_no_metric() -> None:
    """Whatever stands in the padding, even infinities, changes nothing and gives no gradient."""
    model, batch, items = rollout()
    with torch.no_grad():
        log_probs, entropy, values = model(batch["responses"])
    n = float(items)

    def everything(extra: int) -> tuple[dict[str, float], float, float, Tensor]:
        def wide(x: Tensor, value: float) -> Tensor:
            return nn.functional.pad(x, (0, extra), value=value)

        lp = wide(log_probs, -math.inf).requires_grad_()
        old, mask, advantages = wide(batch["old"], 1.0), wide(batch["mask"], False), wide(batch["advantages"], 0.0)
        v, old_v, returns = wide(values, 1e9), wide(batch["old_values"], 5.0), wide(batch["returns"], -5.0)
        value_mask = wide(batch["value_mask"], False)
        metrics = policy_metrics(lp, old, wide(entropy, math.nan), advantages, mask, 0.2, n)
        metrics |= value_metrics(v, old_v, returns, value_mask, 0.2, n)
        policy = policy_loss(lp, old, advantages, mask, 0.2, n)
        policy.backward()
        value = value_loss(v, old_v, returns, value_mask, 0.2, n)
        return metrics, policy.item(), value.item(), lp.grad

    plain, padded = everything(0), everything(5)
    assert padded[0] == pytest.approx(plain[0], abs=1e-6)
    assert padded[1:3] == pytest.approx(plain[1:3], abs=1e-6)
    assert torch.equal(padded[3][:, :6], plain[3]) and not padded[3][:, 6:].any()


def test_the_policy_that_sampled_has_ratio_one_and_nothing_clipped() -> None:
    log_probs, mask = torch.randn(4, 5), torch.arange(5) < torch.tensor([5, 2, 1, 4])[:, None]
    metrics = policy_metrics(log_probs, log_probs, -log_probs, torch.randn(4, 5), mask, 0.2, float(mask.sum()))
    assert metrics["ratio_max"] == 1.0 and metrics["ratio_mean"] == 1.0
    assert metrics["approx_kl"] == 0.0 and metrics["clip_fraction"] == 0.0


def test_the_coefficient_weighs_the_value_loss_and_zero_leaves_it_out() -> None:
    assert total_loss(torch.tensor(1.0), torch.tensor(2.0), 0.1).item() == pytest.approx(1.2)
    assert total_loss(torch.tensor(1.0), torch.tensor(math.nan), 0.0).item() == 1.0


# --- order and optimiser ----------------------------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match="3 rows cannot make 4 minibatches"):
        minibatches(3, 4, 0, 0, 0)


def test_the_learning_rate_falls_in_a_line_to_zero() -> None:
    assert [linear_to_zero(update, 5) for update in range(6)] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0.0])
    assert linear_to_zero(9, 5) == 0.0


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
