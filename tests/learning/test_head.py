"""The head of feature extraction against scikit-learn's logistic regression, which solves the same problem."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from ajuste.learning.head import fit_head


def make(classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(classes)
    labels = torch.randint(0, classes, (300,), generator=generator)
    features = torch.randn(300, 5, generator=generator) * torch.tensor([1.0, 5.0, 0.1, 2.0, 1.0]) + 3
    features[:, 0] += labels
    return features, labels


@pytest.mark.parametrize("classes", [2, 3])
def test_it_finds_scikit_learns_optimum(classes: int) -> None:
    features, labels = make(classes)
    falling = iter(range(0, -1000, -1))  # so that the last step is kept
    head = fit_head(
        features, labels, features, classes, 0.01, 300, 300, evaluate=lambda logits: {"loss": next(falling)}
    )
    z = ((features - features.mean(0)) / features.std(0)).numpy()
    # for two classes scikit-learn penalises v = w1 - w0; ours penalises w0 = -v/2 and w1 = v/2, so half as much
    strength = 0.01 * len(labels) / (2 if classes == 2 else 1)
    reference = LogisticRegression(C=1 / strength, tol=1e-8, max_iter=1000).fit(z, labels)
    ours = torch.softmax(features @ head.weight.T + head.bias, dim=1).numpy()
    assert np.abs(ours - reference.predict_proba(z)).max() < 1e-3


def test_the_best_validation_step_is_kept_and_patience_ends_it() -> None:
    features, labels = make(2)
    losses = iter([0.5, 0.4, 0.6, 0.7, 0.3])
    head = fit_head(features, labels, features, 2, 0.01, 50, patience=2, evaluate=lambda logits: {"loss": next(losses)})
    assert head.best_step == 2
    assert [row["eval_loss"] for row in head.history] == [0.5, 0.4, 0.6, 0.7]


def test_two_runs_give_the_same_bits() -> None:
    features, labels = make(3)
    heads = [fit_head(features, labels, features, 3, 0.01, 20, 20, lambda logits: {"loss": 1.0}) for _ in range(2)]
    assert torch.equal(heads[0].weight, heads[1].weight) and heads[0].history == heads[1].history


def test_class_weights_move_the_bias_towards_the_rare_class() -> None:
    features, labels = make(2)
    labels[:250] = 0
    plain, weighted = (
        fit_head(
            features,
            labels,
            features,
            2,
            0.01,
            50,
            50,
            lambda logits: {"loss": 1.0 - logits.abs().mean().item()},
            weights,
        )
        for weights in (None, torch.tensor([0.5, 5.0]))
    )
    shares = [(features @ h.weight.T + h.bias).argmax(1).double().mean().item() for h in (plain, weighted)]
    assert shares[1] > shares[0]


def test_the_history_is_the_loss_the_gradient_and_what_was_measured() -> None:
    """Class weights and l2 = 0.3: loss and norm of the last step from the weights it ended with, by hand in float64."""
    features, labels = make(3)
    weights = torch.tensor([0.5, 1.0, 2.0])
    seen = []

    def evaluate(logits: torch.Tensor) -> dict[str, float]:
        seen.append(logits)
        return {"loss": -float(len(seen)), "accuracy": 0.25}

    head = fit_head(features, labels, features[:7], 3, 0.3, 4, 4, evaluate, weights)
    assert [row["step"] for row in head.history] == [1, 2, 3, 4] and head.best_step == 4
    assert all(row["lr"] == 1.0 and row["eval_accuracy"] == 0.25 for row in head.history)
    assert [row["eval_loss"] for row in head.history] == [-1.0, -2.0, -3.0, -4.0]
    assert set(head.history[0]) == {"step", "loss", "lr", "grad_norm", "eval_loss", "eval_accuracy"}
    assert not seen[0].requires_grad and not head.weight.requires_grad
    assert torch.allclose(features[:7] @ head.weight.T + head.bias, seen[-1], atol=1e-4)
    mean, deviation = features.double().mean(0), features.double().std(0)
    z, W = (features.double() - mean) / deviation, head.weight.double() * deviation
    p = torch.softmax(z @ W.T + head.bias.double() + W @ (mean / deviation), 1)
    each = -weights.double()[labels] * p[torch.arange(300), labels].log()
    assert head.history[-1]["loss"] == pytest.approx((each.mean() + 0.15 * W.square().sum()).item(), rel=1e-5)
    d = weights.double()[labels][:, None] * (p - torch.eye(3)[labels]) / 300
    gradient = torch.cat([(d.T @ z + 0.3 * W).flatten(), d.sum(0)])
    assert head.history[-1]["grad_norm"] == pytest.approx(gradient.norm().item(), rel=1e-3, abs=1e-6)


def test_a_vanished_gradient_ends_it_and_an_equal_loss_is_not_better() -> None:
    features, labels = make(2)
    head = fit_head(features, labels, features, 2, 1.0, 3, 9, lambda logits: {"loss": 1.0})
    assert head.best_step == 1 and len(head.history) == 3
    even = torch.arange(300) % 2  # features without a word to say: the start is the optimum
    head = fit_head(torch.full((300, 5), 3.0), even, features, 2, 1.0, 9, 9, lambda logits: {"loss": 1.0})
    assert len(head.history) == 1 and head.history[0]["grad_norm"] == 0.0


def test_a_feature_that_never_changes_says_nothing_and_breaks_nothing() -> None:
    features, labels = make(2)
    features[:, 2] = 3.0
    head = fit_head(features, labels, features, 2, 0.1, 20, 20, lambda logits: {"loss": 1.0})
    assert not head.weight[:, 2].any() and torch.isfinite(head.weight).all()


def test_a_step_is_one_iteration_and_the_first_goes_down_the_gradient() -> None:
    """From W = 0 and b = 0, without any memory: (W, b) is a negative multiple of the gradient there."""
    features, labels = make(3)
    head = fit_head(features, labels, features, 3, 0.3, 1, 9, lambda logits: {"loss": 0.0})
    mean, deviation = features.double().mean(0), features.double().std(0)
    z, W = (features.double() - mean) / deviation, head.weight.double() * deviation
    d = (torch.full((300, 3), 1 / 3).double() - torch.eye(3)[labels]) / 300
    gradient = torch.cat([(d.T @ z).flatten(), d.sum(0)])
    found = torch.cat([W.flatten(), head.bias.double() + W @ (mean / deviation)])
    assert torch.cosine_similarity(found, gradient, dim=0).item() == pytest.approx(-1.0, abs=1e-6)
