"""What a task trains on and is measured by on validation: loss, metric, evaluation. Private to `classify`.

sequence   cross-entropy of one label a text          accuracy, macro_f1
token      cross-entropy of one label a word          accuracy of words, entity_f1       (ajuste/judging/words.py)
span       cross-entropies of start and end           exact_match, f1 of SQuAD           (ajuste/judging/spans.py)
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from ajuste.judging import spans, words
from ajuste.learning.losses.cross_entropy import span_cross_entropy, weighted_cross_entropy
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


def objective_of(task: str, labels: list[str], weights: Tensor | None) -> Objective:
    """The objective of `sequence`, `token` or `span`. weights: class weights [C] of the training loss, or None."""
    if task == "span":
        return Objective("f1", _span_loss, spans.evaluate)
    loss = partial(_label_loss, weights)
    if task == "token":
        return Objective("entity_f1", loss, partial(words.evaluate, labels))
    return Objective("macro_f1", loss, evaluate_sequence)


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


def _label_loss(
    weights: Tensor | None, outputs, labels: Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    if weights is not None:
        weights = weights.to(outputs.logits.device)
    return weighted_cross_entropy(outputs.logits, labels, weights, num_items_in_batch)


def _span_loss(outputs, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    return span_cross_entropy(outputs.start_logits, outputs.end_logits, labels, num_items_in_batch)
