"""The loss of comparisons against closed forms, and what it must not see."""

import math

import pytest
import torch
from torch.nn import functional as F

from ajuste.learning.losses.bradley_terry import bradley_terry, comparison_loss, pairs

CHOSEN, REJECTED = torch.tensor([1.5, -0.3, 2.0]), torch.tensor([0.2, 0.4, -1.0])


def test_equal_rewards_cost_ln_2() -> None:
    rewards = torch.full((6,), 3.7)
    assert torch.equal(bradley_terry(rewards, rewards), torch.full((6,), math.log(2)))
    assert comparison_loss(rewards, torch.tensor([2, 4])).item() == pytest.approx(math.log(2), abs=1e-7)
    for agreement in (0.0, 0.3, 1.0):
        assert bradley_terry(rewards, rewards, None, torch.full((6,), agreement))[0] == pytest.approx(math.log(2))


def test_it_is_the_cross_entropy_of_two_rewards() -> None:
    """-log sigmoid(a - b) is the softmax cross-entropy of logits (a, b) with class 0."""
    expected = F.cross_entropy(torch.stack([CHOSEN, REJECTED], 1), torch.zeros(3, dtype=torch.int64), reduction="none")
    assert torch.allclose(bradley_terry(CHOSEN, REJECTED), expected, atol=1e-7)
    soft = torch.tensor([[0.8, 0.2], [0.5, 0.5], [1.0, 0.0]])
    expected = F.cross_entropy(torch.stack([CHOSEN, REJECTED], 1), soft, reduction="none")
    assert torch.allclose(bradley_terry(CHOSEN, REJECTED, None, soft[:, 0]), expected, atol=1e-7)


def test_a_constant_changes_nothing_neither_loss_nor_gradient() -> None:
    found = []
    for constant in (0.0, 5.0):
        rewards = torch.tensor([1.0, 0.5, -0.25, 2.0, 0.0]).add(constant).requires_grad_()
        loss = comparison_loss(rewards, torch.tensor([2, 3]))
        loss.backward()
        assert rewards.grad.sum().abs() < 1e-7
        found.append((loss.item(), rewards.grad))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-6)


def test_swapping_a_pair_costs_its_difference() -> None:
    """L(-d) - L(d) = d."""
    d = CHOSEN - REJECTED
    assert torch.allclose(bradley_terry(REJECTED, CHOSEN) - bradley_terry(CHOSEN, REJECTED), d, atol=1e-6)
    a = torch.tensor([0.9, 0.6, 0.5])  # with a soft label: (2a - 1) d
    swapped = bradley_terry(REJECTED, CHOSEN, None, a) - bradley_terry(CHOSEN, REJECTED, None, a)
    assert torch.allclose(swapped, (2 * a - 1) * d, atol=1e-6)


def test_margin_and_soft_label_in_closed_form() -> None:
    def by_hand(d: float, m: float, a: float) -> float:
        z = d - m
        return a * math.log(1 + math.exp(-z)) + (1 - a) * math.log(1 + math.exp(z))

    margin, agreement = torch.tensor([0.5, 1.0, 0.0]), torch.tensor([0.9, 1.0, 0.55])
    expected = [by_hand(*row) for row in torch.stack([CHOSEN - REJECTED, margin, agreement], 1).tolist()]
    assert bradley_terry(CHOSEN, REJECTED, margin, agreement).tolist() == pytest.approx(expected, rel=1e-6)
    # the margin moves the point where a pair is a coin's toss
    assert bradley_terry(torch.tensor(2.0), torch.tensor(0.0), torch.tensor(2.0)).item() == pytest.approx(math.log(2))


def test_a_soft_label_is_lowest_where_the_model_says_the_same() -> None:
    """dL/dd = sigmoid(d) - a."""
    a = torch.tensor([0.3, 0.8])
    d = torch.tensor([0.7, -1.1], requires_grad=True)
    bradley_terry(d, torch.zeros(2), None, a).sum().backward()
    assert torch.allclose(d.grad, torch.sigmoid(d.detach()) - a, atol=1e-6)
    best = torch.logit(a)
    assert torch.all(bradley_terry(best, torch.zeros(2), None, a) < bradley_terry(best + 0.1, torch.zeros(2), None, a))


def test_large_differences_stay_finite() -> None:
    loss = bradley_terry(torch.tensor([1e4, -1e4]), torch.tensor([-1e4, 1e4]), None, torch.tensor([0.9, 0.9]))
    assert torch.isfinite(loss).all() and loss[0] == pytest.approx(2e3) and loss[1] == pytest.approx(1.8e4)
    assert bradley_terry(torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([0.0])).dtype == torch.float32


def test_rewards_of_any_precision_are_compared_in_float32_or_better() -> None:
    """256.0 and 255.0 are bfloat16 numbers, 255.5 and their loss in bfloat16 are not near what they should be."""
    chosen, rejected = torch.tensor([1.0, 256.0]).bfloat16(), torch.tensor([0.5, 255.0]).bfloat16()
    expected = [math.log(1 + math.exp(-0.5)), math.log(1 + math.exp(-1.0))]
    for one, other in ((chosen, rejected), (chosen, rejected.float()), (chosen.float(), rejected)):
        found = bradley_terry(one, other)
        assert found.dtype == torch.float32 and found.tolist() == pytest.approx(expected, rel=1e-6)
    exact = bradley_terry(chosen.double(), rejected.double())
    assert exact.dtype == torch.float64 and exact.tolist() == pytest.approx(expected, rel=1e-14)
    mean = comparison_loss(torch.tensor([1.0, 0.5, 256.0, 255.0]).bfloat16(), torch.tensor([2, 2]))
    assert mean.dtype == torch.float32 and mean.item() == pytest.approx(sum(expected) / 2, rel=1e-6)


def test_a_ranking_is_one_element_the_mean_over_its_pairs() -> None:
    rewards = torch.tensor([0.3, -0.2, 1.0, 0.4, 0.9, -2.0])  # a pair and a ranking of four
    four = rewards[2:]
    six = [bradley_terry(four[i], four[j]).item() for i in range(4) for j in range(i + 1, 4)]
    pair = bradley_terry(rewards[0], rewards[1]).item()
    expected = (pair + sum(six) / 6) / 2
    assert comparison_loss(rewards, torch.tensor([2, 4])).item() == pytest.approx(expected, rel=1e-6)
    # margin and label belong to the comparison
    margin, agreement = torch.tensor([0.0, 0.25]), torch.tensor([0.7, 1.0])
    six = [bradley_terry(four[i], four[j], margin[1]).item() for i in range(4) for j in range(i + 1, 4)]
    pair = bradley_terry(rewards[0], rewards[1], None, agreement[0]).item()
    found = comparison_loss(rewards, torch.tensor([2, 4]), margin, agreement).item()
    assert found == pytest.approx((pair + sum(six) / 6) / 2, rel=1e-6)


def test_pieces_of_a_step_add_up() -> None:
    rewards, sizes = torch.randn(14, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 3, 2, 5, 2])
    whole = comparison_loss(rewards, sizes).item()
    parts, begin = 0.0, 0
    for piece in (sizes[:2], sizes[2:3], sizes[3:]):
        end = begin + int(piece.sum())
        parts += comparison_loss(rewards[begin:end], piece, items=5).item()
        begin = end
    assert parts == pytest.approx(whole, rel=1e-6)


def test_pairs_are_all_of_a_comparison_and_none_across() -> None:
    found = torch.stack(pairs(torch.tensor([2, 3])), 1).tolist()  # better, worse, which comparison
    assert found == [[0, 1, 0], [2, 3, 1], [2, 4, 1], [3, 4, 1]]
    for sizes in ([], [2, 1]):
        with pytest.raises(ValueError, match="^a comparison needs at least two responses$"):
            pairs(torch.tensor(sizes, dtype=torch.int64))
