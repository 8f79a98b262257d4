"""Named entities (`classify.task: token`): a label a word, in the BIO scheme, and F1 over whole entities.

A data set of this kind has rows {"words": [...], "tags": ["O", "B-PER", "I-PER", ...]}. A word may become several word
pieces; its tag stands on the first, the others and the special tokens get -100, which neither loss nor score counts.

    entity F1 = 2 |found and true| / (|found| + |true|)    an entity is (row, type, first, last word), all agree

As in CoNLL 2003's conlleval, an I- tag without a B- of its type before it opens an entity.
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ajuste.core.errors import DataError
from ajuste.learning.batching import pad, sorted_batches
from ajuste.learning.losses.cross_entropy import IGNORED, weighted_cross_entropy
from ajuste.rows.encoded.labelled import Rows


def encode_words(
    tokenizer: PreTrainedTokenizerBase, rows: list[dict], labels: list[str], max_tokens: int, location: Path | str
) -> pa.Table:
    """Rows with `words` and `tags` as input_ids and labels (lists of int32). DataError names `location` and the row."""
    ids = {name: i for i, name in enumerate(labels)}
    encoded = []
    for number, row in enumerate(rows, start=1):
        words, tags = row.get("words"), row.get("tags")
        if not words or not tags or len(words) != len(tags):
            raise DataError(f"{location}:{number}: `words` and `tags` must be lists of one length, and not empty")
        unknown = [tag for tag in tags if tag not in ids]
        if unknown:
            raise DataError(f"{location}:{number}: tag {unknown[0]!r} is not one of {', '.join(labels)}")
        pieces = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_tokens)
        word_of = pieces.word_ids()
        first = [word is not None and word != before for word, before in zip(word_of, [None, *word_of], strict=False)]
        encoded.append(
            {
                "input_ids": pieces["input_ids"],
                "labels": [ids[tags[word]] if opens else IGNORED for word, opens in zip(word_of, first, strict=True)],
            }
        )
    integers = pa.list_(pa.int32())
    return pa.Table.from_pylist(encoded, pa.schema([("input_ids", integers), ("labels", integers)]))


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
