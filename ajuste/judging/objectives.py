"""What a task trains on and is measured by on validation: loss, metric, evaluation. Here that of whole texts.

sequence   cross-entropy of one label a text          accuracy, macro_f1
token      cross-entropy of one label a word          accuracy of words, entity_f1       (ajuste/judging/words.py)
span       cross-entropies of start and end           exact_match, f1 of SQuAD           (ajuste/judging/spans.py)
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from ajuste.learning.losses.cross_entropy import weighted_cross_entropy
from ajuste.learning.statistics import metrics
from ajuste.models.classifier import logits_of
from ajuste.rows.encoded.labelled import Rows


@dataclass(frozen=True)
class Objective:
    """metric: name of the score that chooses the best evaluation (higher is better).

    loss(outputs, labels, num_items_in_batch) -> scalar.
    evaluate(model, rows, batch_rows) -> {"loss": ..., metric: ...}.
    """

    metric: str
    loss: Callable[..., Tensor]
    evaluate: Callable[[nn.Module, Rows, int], dict[str, float]]


class Task(NamedTuple):
    """name: which head a model gets and which label columns a row has. objective(labels, class weights or None)."""

    name: str
    objective: Callable[[list[str], Tensor | None], Objective]


def evaluate_sequence(model: nn.Module, rows: Rows, batch_rows: int) -> dict[str, float]:
    """Loss, accuracy and macro-F1 of a text classifier on `rows`."""
    return scores(logits_of(model, rows.ids, batch_rows), rows.flat_labels())


def scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Unweighted loss, accuracy and macro-F1 of logits [N, C] against labels [N]."""
    matrix = metrics.confusion(labels.numpy(), logits.argmax(dim=1).numpy(), logits.shape[1])
    return {
        "loss": weighted_cross_entropy(logits, labels).item(),
        "accuracy": float(metrics.accuracy(matrix)[0]),
        "macro_f1": float(metrics.macro_f1(matrix)[0]),
    }


def label_loss(
    weights: Tensor | None, outputs, labels: Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """Cross-entropy of one label a row or a token. weights: of the classes [C], or None."""
    if weights is not None:
        weights = weights.to(outputs.logits.device)
    return weighted_cross_entropy(outputs.logits, labels, weights, num_items_in_batch)


def objective(labels: list[str], weights: Tensor | None) -> Objective:
    """Cross-entropy of one label a text; the best evaluation is that of the highest macro-F1."""
    return Objective("macro_f1", partial(label_loss, weights), evaluate_sequence)


SEQUENCE = Task("sequence", objective)
