"""The gap between sampler and trainer by hand, and the weights that put it back into PPO's loss."""

import math

import pytest
import torch
from torch import Tensor

from ajuste.learning.rl.ppo import importance_weights, policy_loss
from ajuste.learning.rl.sampler_gap import gap_figures

MASK = torch.arange(50)[None] < torch.tensor([50, 50, 1])[:, None]


def planted() -> tuple[Tensor, Tensor]:
    """(trainer, sampler) of 101 tokens whose gaps are 0, 0.01, ... 1 with either sign; infinite off the mask."""
    size = torch.arange(101) / 100
    gap = torch.zeros(MASK.shape).masked_scatter(MASK, torch.where(torch.arange(101) % 2 == 0, size, -size))
    sampler = torch.where(MASK, -3.0, -torch.inf)
    return sampler + gap, sampler


def test_the_figures_of_a_planted_gap() -> None:
    found = gap_figures(*planted(), MASK, 0.2)
    wanted = {"": 1.0, "_mean": 0.5, "_p50": 0.5, "_p90": 0.9, "_p99": 0.99}
    for name, value in wanted.items():
        assert found[f"sampler_gap{name}"] == pytest.approx(value, abs=1e-6), name
    # e^g > 1.2 from 0.1823 on, of the even hundredths; e^g < 0.8 from -0.2231 on, of the odd ones
    assert found["sampler_gap_beyond_clip"] == pytest.approx((41 + 39) / 101)
    assert "sampler_gap_beyond_clip" not in gap_figures(*planted(), MASK, None)


def test_a_gap_that_is_no_number_is_not_hidden() -> None:
    trainer, sampler = planted()
    trainer[0, 3] = torch.nan
    found = gap_figures(trainer, sampler, MASK, 0.2)
    assert math.isnan(found["sampler_gap"]) and math.isnan(found["sampler_gap_mean"])


def test_weights_are_the_ratio_of_trainer_and_sampler_at_most_the_cap() -> None:
    old = torch.log(torch.tensor([[0.2, 0.6, 0.5, 0.4]])).requires_grad_()
    sampler = torch.log(torch.tensor([[0.4, 0.4, 0.1, 0.0]]))
    weights = importance_weights(old, sampler, torch.tensor([[True, True, True, False]]), 2.0)
    assert torch.allclose(weights, torch.tensor([[0.5, 1.5, 2.0, 0.0]])) and not weights.requires_grad


@pytest.mark.parametrize("gap", [math.log(1.25), -0.7, math.log(3.0)])
def test_a_planted_gap_changes_the_loss_by_exactly_its_factor(gap: float) -> None:
    """The same gap at each token: loss and gradients times min(e^gap, cap), also where clip and dual clip decide."""
    generator = torch.Generator().manual_seed(0)
    old, A = (torch.randn(3, 50, generator=generator) for _ in range(2))
    new = (old + 0.6 * torch.randn(3, 50, generator=generator)).requires_grad_()

    def of(weights: Tensor | None) -> tuple[Tensor, Tensor]:
        loss = policy_loss(new, old, A, MASK, 0.2, MASK.sum(), 1.5, weights)
        return loss, torch.autograd.grad(loss, new)[0]

    factor = min(math.exp(gap), 2.0)
    plain, weighted = of(None), of(importance_weights(old, old - gap, MASK, 2.0))
    for one, other in zip(plain, weighted, strict=True):
        assert torch.allclose(other, factor * one, rtol=1e-5, atol=1e-7)
    assert plain[0].abs() > 1e-3 and plain[1][2, 1:].abs().max() == 0


def test_the_weighted_loss_is_a_mean_over_the_masked_tokens() -> None:
    """Of three tokens, the last one padding: -(w_1 A_1 + w_2 A_2) / 2 where the ratios are 1."""
    old, mask = torch.zeros(1, 3), torch.tensor([[True, True, False]])
    weights = importance_weights(old, torch.log(torch.tensor([[0.5, 2.0, 0.1]])), mask, 1.8)
    loss = policy_loss(old, old, torch.tensor([[3.0, -1.0, 9.0]]), mask, 0.2, 2, None, weights)
    assert loss.item() == pytest.approx(-(1.8 * 3.0 - 0.5 * 1.0) / 2)
