"""Extractive question answering (task `span`): where in the context does the answer start and end?

    (start, end) = argmax start_logits[s] + end_logits[e]     over s <= e < s + MAX_ANSWER inside the context

The rows are those of ajuste/rows/encoded/questions.py; scores are SQuAD's (ajuste/judging/answers.py). Run it:
`ajuste study qa`.
"""

import torch
from torch import Tensor, nn

from ajuste.judging.answers import exact_match, word_f1
from ajuste.judging.objectives import Objective, Task
from ajuste.learning.batching import pad, sorted_batches
from ajuste.learning.losses.cross_entropy import IGNORED, span_cross_entropy
from ajuste.rows.encoded.labelled import Rows

MAX_ANSWER = 30  # tokens, as in BERT's own script


def best_span(start_logits: Tensor, end_logits: Tensor, inside: Tensor) -> tuple[int, int]:
    """Token positions of the best answer. All three are [T]; `inside` is True for tokens of the context."""
    scores = start_logits[:, None] + end_logits[None, :]
    allowed = torch.ones_like(scores, dtype=torch.bool).triu().tril(MAX_ANSWER - 1) & inside[:, None] & inside[None, :]
    return divmod(int(scores.masked_fill(~allowed, -torch.inf).argmax()), len(inside))


def predict_rows(model: nn.Module, rows: Rows, batch_rows: int) -> list[tuple[Tensor, Tensor]]:
    """(start_logits, end_logits), each [T], of each row, in order."""
    logits: list = [None] * len(rows)
    device = next(model.parameters()).device
    with torch.no_grad():
        for batch in sorted_batches(rows.ids, batch_rows):
            input_ids, attention_mask = (
                x.to(device) for x in pad([rows.ids[i] for i in batch], model.config.pad_token_id)
            )
            answer = model(input_ids=input_ids, attention_mask=attention_mask)
            for place, i in enumerate(batch):
                length = len(rows.ids[i])
                logits[i] = tuple(x[place, :length].float().cpu() for x in (answer.start_logits, answer.end_logits))
    return logits


def answers_of(logits: list[tuple[Tensor, Tensor]], rows: Rows) -> list[str]:
    """The text of the best span of each row."""
    texts = []
    for (start_logits, end_logits), offsets, context in zip(
        logits, rows.table["offsets"].to_pylist(), rows.table["context"].to_pylist(), strict=True
    ):
        spans = torch.as_tensor(offsets).reshape(-1, 2)
        first, last = best_span(start_logits, end_logits, spans[:, 0] >= 0)
        texts.append(context[spans[first, 0] : spans[last, 1]])
    return texts


def evaluate(model: nn.Module, rows: Rows, batch_rows: int) -> dict[str, float]:
    """Loss (of rows whose answer was not cut away), exact match and word F1."""
    logits = predict_rows(model, rows, batch_rows)
    losses = [
        span_cross_entropy(start[None], end[None], torch.as_tensor(label)[None].long()).item()
        for (start, end), label in zip(logits, rows.labels, strict=True)
        if label[0] != IGNORED
    ]
    pairs = list(zip(answers_of(logits, rows), rows.table["answers"].to_pylist(), strict=True))
    return {
        "loss": sum(losses) / max(len(losses), 1),
        "exact_match": sum(exact_match(*pair) for pair in pairs) / len(pairs),
        "f1": sum(word_f1(*pair) for pair in pairs) / len(pairs),
    }


def objective(labels: list[str], weights: Tensor | None) -> Objective:
    """Cross-entropies of the first and the last token; the best evaluation is that of the highest word F1."""
    return Objective("f1", _loss, evaluate)


def _loss(outputs, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    return span_cross_entropy(outputs.start_logits, outputs.end_logits, labels, num_items_in_batch)


SPAN = Task("span", objective)
