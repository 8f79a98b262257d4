"""The losses of PPO by hand, and the promise that micro-batches change nothing."""

import math

import pytest
import torch
from torch import Tensor, nn

from ajuste.learning.rl.advantages import Options, episode_targets
from ajuste.learning.rl.ppo import policy_loss, policy_metrics, value_loss, value_metrics

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


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"),
    [(5.0, -1.0, 3.0), (2.0, -1.0, 2.0), (5.0, 1.0, -1.2), (5.0, -0.5, 1.5), (5.0, 0.5, -0.6)],
)
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


@pytest.mark.parametrize(("value", "returned", "loss"), [(1.0, 2.0, 1.69), (0.0, -1.0, 1.69), (0.6, 2.0, 1.96)])
def test_the_clip_of_a_value_decides_on_either_side(value: float, returned: float, loss: float) -> None:
    """Before 0.5 and the clip 0.2: 1.0 counts as 0.7, 0.0 as 0.3, 0.6 as itself."""
    got = value_loss(token(value), token(0.5), token(returned), ONE, 0.2, 1)
    assert got.item() == pytest.approx(loss / 2, abs=1e-6)


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
        loss = policy_loss(log_probs, some["old"], some["advantages"], mask, 0.2, n)
        loss = loss + 0.1 * value_loss(values, some["old_values"], some["returns"], value_mask, 0.2, n)
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


def test_metrics_of_values_by_hand() -> None:
    """The three tokens of the value loss above: the clip decides the last, whose square it makes larger."""
    values, old = torch.tensor([[1.0, 0.5, -1.0, 7.0]]), torch.tensor([[0.5, 0.4, 0.0, 0.0]])
    returns, mask = torch.tensor([[0.0, 1.0, -2.0, 0.0]]), torch.tensor([[True, True, True, False]])
    found = value_metrics(values, old, returns, mask, 0.2, 3)
    assert found == {"value_mean": pytest.approx(0.5 / 3), "value_clip_fraction": pytest.approx(1 / 3)}
    assert value_metrics(values, old, returns, mask, None, 3)["value_clip_fraction"] == 0.0


def test_metrics_of_the_policy_by_hand() -> None:
    """Ratios 2, 1 and 1/2, of which the clip at 1.2 and 0.8 decides the good first and not the bad second."""
    lp, old = torch.tensor([[math.log(2), -1.0, -math.log(2), 5.0]]), torch.tensor([[0.0, -1.0, 0.0, 0.0]])
    mask, entropy = torch.tensor([[True, True, True, False]]), torch.tensor([[1.0, 2.0, 3.0, 99.0]])
    found = policy_metrics(lp, old, entropy, torch.tensor([[1.0, -1.0, 2.0, 1.0]]), mask, 0.2, 3)
    assert found == pytest.approx({
        "approx_kl": math.log(2) ** 2 / 3, "clip_fraction": 1 / 3, "entropy": 2.0, "ratio_mean": 3.5 / 3,
        "ratio_max": 2.0,
    })  # fmt: skip


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
