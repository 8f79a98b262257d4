"""Named entities (task `token`): a label a word, in the BIO scheme, and F1 over whole entities.

    entity F1 = 2 |found and true| / (|found| + |true|)    an entity is (row, type, first, last word), all agree

As in CoNLL 2003's conlleval, an I- tag without a B- of its type before it opens an entity. The rows are those of
ajuste/rows/encoded/words.py. Run it: `ajuste study ner`.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ajuste.judging.objectives import Objective, Task, label_loss
from ajuste.learning.batching import pad, sorted_batches
from ajuste.learning.losses.cross_entropy import IGNORED, weighted_cross_entropy
from ajuste.rows.encoded.labelled import Rows


def entities(tags: list[str]) -> set[tuple[str, int, int]]:
    """(type, first word, last word) of each entity in a row of BIO tags."""
    found, kind, first = set(), None, 0
    for i, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if kind is not None and (prefix != "I" or name != kind):
            found.add((kind, first, i - 1))
            kind = None
        if prefix != "O" and kind is None:
            kind, first = name, i
    return found


def entity_counts(labels: list[str], true: list[int], predicted: list[int]) -> tuple[int, int, int]:
    """(entities that agree, true entities, found entities) of one row of tag ids."""
    wanted, found = (entities([labels[i] for i in row]) for row in (true, predicted))
    return len(wanted & found), len(wanted), len(found)


def f1_of_counts(counts: Sequence[float]) -> float:
    """2 agree / (true + found), 0 where there are none."""
    agree, true, found = counts
    return float(2 * agree / (true + found)) if true + found else 0.0


def true_tags(rows: Rows) -> list[list[int]]:
    """Tag ids of the words of each row."""
    return [row[row != IGNORED].tolist() for row in rows.labels]


def predict_rows(model: nn.Module, rows: Rows, batch_rows: int) -> list[Tensor]:
    """Logits [words, C] of each row, in order: those of the pieces that carry a label."""
    logits: list[Tensor] = [torch.empty(0)] * len(rows)
    device = next(model.parameters()).device
    with torch.no_grad():
        for batch in sorted_batches(rows.ids, batch_rows):
            input_ids, attention_mask = (
                x.to(device) for x in pad([rows.ids[i] for i in batch], model.config.pad_token_id)
            )
            answers = model(input_ids=input_ids, attention_mask=attention_mask).logits.float().cpu()
            for i, answer in zip(batch, answers, strict=True):
                labelled = torch.as_tensor(rows.labels[i]) != IGNORED
                logits[i] = answer[: len(labelled)][labelled]
    return logits


def evaluate(labels: list[str], model: nn.Module, rows: Rows, batch_rows: int) -> dict[str, float]:
    """Loss and accuracy over words, and micro F1 over the entities of all rows."""
    logits = predict_rows(model, rows, batch_rows)
    true, guessed = true_tags(rows), [row.argmax(dim=1).tolist() for row in logits]
    words = torch.cat([torch.as_tensor(row) for row in true])
    counts = [entity_counts(labels, *pair) for pair in zip(true, guessed, strict=True)]
    return {
        "loss": weighted_cross_entropy(torch.cat(logits), words).item(),
        "accuracy": (torch.cat(logits).argmax(dim=1) == words).double().mean().item(),
        "entity_f1": f1_of_counts([sum(column) for column in zip(*counts, strict=True)]),
    }


def objective(labels: list[str], weights: Tensor | None) -> Objective:
    """Cross-entropy of one label a word; the best evaluation is that of the highest entity F1."""
    return Objective("entity_f1", partial(label_loss, weights), partial(evaluate, labels))


TOKEN = Task("token", objective)
