"""Classification losses, normalised so that gradient accumulation changes nothing.

    L = sum_i w[y_i] * -log p(y_i | x_i; theta) / N        N = trained items of the whole optimiser step

The sum runs over one micro-batch, N counts the items of all micro-batches of the step, so the micro-losses (and their
gradients) add up to the loss of the large batch: 8x1 == 4x2 == 1x8, also with rows or labels of unequal number.

Differs from torch.nn.functional.cross_entropy(weight=w): torch divides by the sum of the weights *in the micro-batch*,
which makes the result depend on how a batch is cut. Here the weights have mean 1 over the training rows instead
(`balanced_weights`), so that N stands for the sum of the weights and the learning rate keeps its meaning.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100  # a label that is not trained on: padding, continued word pieces


def weighted_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, items: Tensor | int | None = None
) -> Tensor:
    """Cross-entropy of `logits` [..., C] and integer `labels` [...], a scalar in nats.

    weights: [C], one factor a class, or None. items: trained labels of the whole optimiser step; None means those of
    `labels`. Labels equal to -100 count neither above nor below the line.
    """
    flat = logits.reshape(-1, logits.shape[-1]).float()
    target = labels.reshape(-1)
    total = F.cross_entropy(flat, target, weight=weights, ignore_index=IGNORED, reduction="sum")
    if items is None:
        items = (target != IGNORED).sum().clamp(min=1)
    return total / items


def span_cross_entropy(
    start_logits: Tensor, end_logits: Tensor, positions: Tensor, items: Tensor | int | None = None
) -> Tensor:
    """Mean of the cross-entropies of the first and the last token of an answer.

    start_logits, end_logits: [B, T]; positions: [B, 2]. items counts both positions of a row, so 2 B for a batch.
    """
    logits = torch.stack([start_logits, end_logits], dim=1)  # [B, 2, T]
    return weighted_cross_entropy(logits, positions, None, items)


def balanced_weights(labels: Tensor, classes: int) -> Tensor:
    """w_c = n / (classes present * n_c): rare classes count more, and the mean weight over the rows is 1.

    labels: integers of any shape, -100 left out. Returns float32 [classes]; a class without a row gets 0.
    """
    counts = torch.bincount(labels[labels != IGNORED].reshape(-1), minlength=classes).float()
    present = counts > 0
    weights = torch.zeros(classes)
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return weights
