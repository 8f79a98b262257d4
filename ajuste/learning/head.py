"""The head of feature extraction: multinomial logistic regression on frozen features, to its optimum in seconds.

    min over W, b of   mean_i w[y_i] * -log softmax(W z_i + b)[y_i] + (l2 / 2) |W|^2        z = (x - mean) / deviation

The problem is convex, so full-batch L-BFGS with a strong Wolfe line search finds the one optimum: no learning rate,
no batch order, no seed. Features are standardised by the training rows, and the standardisation is folded into W and b
afterwards, so what is returned works on the raw features.

    head = fit_head(features, labels, validation, classes, l2=0.01, steps=100, patience=20, evaluate=scores)
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ajuste.learning.losses.cross_entropy import weighted_cross_entropy


@dataclass
class Head:
    """W [C, d] and b [C] for raw features, the step they come from, and one history row a step."""

    weight: Tensor
    bias: Tensor
    best_step: int
    history: list[dict]


def fit_head(
    features: Tensor,
    labels: Tensor,
    validation: Tensor,
    classes: int,
    l2: float,
    steps: int,
    patience: int,
    evaluate: Callable[[Tensor], dict[str, float]],
    weights: Tensor | None = None,
) -> Head:
    """Fit on `features` [N, d] and `labels` [N]; keep the step with the lowest validation loss.

    evaluate: logits of `validation` [M, C] -> {"loss": ..., ...}. weights: class weights [C] or None. Stops after
    `patience` steps without a better validation loss, or when the gradient vanishes.
    History rows: step, loss (with the l2 term), lr, grad_norm, and eval_* of `evaluate`.
    """
    mean, deviation = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    z, z_validation = (features - mean) / deviation, (validation - mean) / deviation
    weight = torch.zeros(classes, features.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=1, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = weighted_cross_entropy(z @ weight.T + bias, labels, weights) + l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    history: list[dict] = []
    best_loss, best = float("inf"), (weight, bias, 0)
    for step in range(1, steps + 1):
        optimiser.step(closure)
        loss = closure().item()
        grad_norm = torch.cat([weight.grad.flatten(), bias.grad]).norm().item()
        with torch.no_grad():
            measured = evaluate(z_validation @ weight.T + bias)
        history.append(
            {
                "step": step,
                "loss": loss,
                "lr": 1.0,
                "grad_norm": grad_norm,
                **{f"eval_{name}": value for name, value in measured.items()},
            }
        )
        if measured["loss"] < best_loss:
            best_loss, best = measured["loss"], (weight.detach().clone(), bias.detach().clone(), step)
        if step - best[2] >= patience or grad_norm < 1e-7:
            break
    folded = best[0] / deviation
    return Head(folded, best[1] - folded @ mean, best[2], history)
