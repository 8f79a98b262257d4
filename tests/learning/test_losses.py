"""Losses against torch's own, and the promise that accumulation changes nothing."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ajuste.learning.losses.cross_entropy import IGNORED, balanced_weights, span_cross_entropy, weighted_cross_entropy


def test_without_weights_it_is_torchs_mean() -> None:
    logits, labels = torch.randn(7, 3), torch.tensor([0, 2, 1, IGNORED, 1, 0, 2])
    assert torch.allclose(weighted_cross_entropy(logits, labels), F.cross_entropy(logits, labels, ignore_index=IGNORED))


def test_one_label_is_its_own_mean_and_none_costs_nothing() -> None:
    logits = torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]])
    alone = weighted_cross_entropy(logits, torch.tensor([1, IGNORED]))
    assert alone.item() == pytest.approx(-torch.log_softmax(logits[0], 0)[1].item(), rel=1e-6)
    assert weighted_cross_entropy(logits, torch.tensor([IGNORED, IGNORED])).item() == 0.0


def test_uniform_logits_cost_ln_of_the_classes() -> None:
    loss = weighted_cross_entropy(torch.zeros(4, 5), torch.tensor([0, 1, 2, 3]))
    assert loss.item() == pytest.approx(torch.tensor(5.0).log().item())


def test_weights_by_hand() -> None:
    logits, labels = torch.tensor([[2.0, 0.0], [1.0, 3.0]]), torch.tensor([0, 1])
    terms = -torch.log_softmax(logits, dim=1)[[0, 1], [0, 1]]
    expected = (0.5 * terms[0] + 2.0 * terms[1]) / 2
    assert torch.allclose(weighted_cross_entropy(logits, labels, torch.tensor([0.5, 2.0])), expected)


def test_balanced_weights_are_scikit_learns_and_have_mean_one() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    labels = torch.tensor([0, 0, 0, 0, 0, 1, 2, 2])
    weights = balanced_weights(labels, 3)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())
    assert torch.allclose(weights, torch.tensor(expected, dtype=torch.float32))
    assert weights[labels].mean().item() == pytest.approx(1.0)
    assert balanced_weights(labels, 4)[3] == 0


@pytest.mark.parametrize("pieces", [1, 2, 4, 8])
def test_accumulation_is_exact_with_weights_and_unequal_rows(pieces: int) -> None:
    """8x1 == 4x2 == 2x4 == 1x8: loss and gradient to 1e-6, with token rows of unequal length."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(8, 6, 4, generator=generator)
    labels = torch.randint(0, 3, (8, 6), generator=generator)
    for i in range(8):
        labels[i, 1 + i % 5 :] = IGNORED
    class_weights = torch.tensor([0.5, 1.0, 3.0])

    def run(cut: int) -> tuple[float, torch.Tensor]:
        weight = torch.ones(4, 3, requires_grad=True)
        items, total = (labels != IGNORED).sum(), 0.0
        for x, y in zip(features.chunk(cut), labels.chunk(cut), strict=True):
            loss = weighted_cross_entropy(x @ weight, y, class_weights, items)
            loss.backward()
            total += loss.item()
        return total, weight.grad

    (loss, gradient), (whole_loss, whole_gradient) = run(pieces), run(1)
    assert loss == pytest.approx(whole_loss, abs=1e-6)
    assert torch.allclose(gradient, whole_gradient, atol=1e-6, rtol=0)


def test_span_loss_is_the_mean_of_both_ends() -> None:
    start, end, positions = torch.randn(3, 9), torch.randn(3, 9), torch.tensor([[0, 1], [4, 8], [2, 2]])
    expected = (F.cross_entropy(start, positions[:, 0]) + F.cross_entropy(end, positions[:, 1])) / 2
    assert torch.allclose(span_cross_entropy(start, end, positions), expected)


def test_spans_are_divided_by_the_items_of_the_whole_step() -> None:
    start, end, positions = torch.randn(3, 9), torch.randn(3, 9), torch.tensor([[0, 1], [4, 8], [2, 2]])
    first, last = positions.T
    both = F.cross_entropy(start, first, reduction="sum") + F.cross_entropy(end, last, reduction="sum")
    assert torch.allclose(span_cross_entropy(start, end, positions, 10), both / 10)
