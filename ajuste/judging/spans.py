"""Extractive question answering (`classify.task: span`): where in the context does the answer start and end?

A data set of this kind has rows {"question", "context", "answers": [str, ...], "answer_start": int}: the first answer
stands in the context at that character. A row becomes [CLS] question [SEP] context [SEP], the context cut at the end.

    (start, end) = argmax start_logits[s] + end_logits[e]     over s <= e < s + MAX_ANSWER inside the context

Scores are SQuAD's: exact match and word F1 after lower-casing and dropping punctuation and articles, the best over a
row's answers. Differs from BERT's recipe: no second segment id, no sliding window over long contexts; a row whose
answer is cut away is left out of the loss (-100) and scored like any other.
"""

import re
import string
from collections import Counter

import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ajuste.core.errors import DataError
from ajuste.learning.batching import pad, sorted_batches
from ajuste.learning.losses.cross_entropy import IGNORED, span_cross_entropy
from ajuste.rows.encoded.labelled import Rows

MAX_ANSWER = 30  # tokens, as in BERT's own script


def encode_questions(tokenizer: PreTrainedTokenizerBase, rows: list[dict], max_tokens: int, location: str) -> pa.Table:
    """Rows as input_ids, start, end (token positions), offsets (characters of each context token, -1 elsewhere),
    context and answers. DataError names `location` and the row."""
    encoded = []
    for number, row in enumerate(rows, start=1):
        missing = [key for key in ("question", "context", "answers", "answer_start") if row.get(key) in (None, "", [])]
        if missing:
            raise DataError(f"{location}:{number}: `{missing[0]}` is missing or empty")
        first, last = row["answer_start"], row["answer_start"] + len(row["answers"][0]) - 1
        if row["context"][first : last + 1] != row["answers"][0]:
            raise DataError(f"{location}:{number}: the context has no {row['answers'][0]!r} at character {first}")
        pieces = tokenizer(
            row["question"],
            row["context"],
            truncation="only_second",
            max_length=max_tokens,
            return_offsets_mapping=True,
        )
        inside = [part == 1 for part in pieces.sequence_ids()]
        spans = [span if keep else (-1, -1) for span, keep in zip(pieces["offset_mapping"], inside, strict=True)]
        encoded.append(
            {
                "input_ids": pieces["input_ids"],
                "start": _token_at(spans, first),
                "end": _token_at(spans, last),
                "offsets": [character for span in spans for character in span],
                "context": row["context"],
                "answers": row["answers"],
            }
        )
        if IGNORED in (encoded[-1]["start"], encoded[-1]["end"]):
            encoded[-1]["start"] = encoded[-1]["end"] = IGNORED
    integers = pa.list_(pa.int32())
    return pa.Table.from_pylist(
        encoded,
        pa.schema(
            [
                ("input_ids", integers),
                ("start", pa.int32()),
                ("end", pa.int32()),
                ("offsets", integers),
                ("context", pa.string()),
                ("answers", pa.list_(pa.string())),
            ]
        ),
    )


def normalise(text: str) -> list[str]:
    """SQuAD's words: lower case, without punctuation and articles."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def exact_match(answer: str, answers: list[str]) -> float:
    """1 if the answer equals one of the answers after SQuAD's normalisation, else 0."""
    return float(any(normalise(answer) == normalise(true) for true in answers))


def word_f1(answer: str, answers: list[str]) -> float:
    """Highest F1 over words in common (with their counts) with one of the answers."""
    return max(_f1(normalise(answer), normalise(true)) for true in answers)


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


def _token_at(spans: list[tuple[int, int]], character: int) -> int:
    """The token that covers a character of the context, -100 if it was cut away."""
    return next((i for i, (start, stop) in enumerate(spans) if start <= character < stop), IGNORED)


def _f1(found: list[str], true: list[str]) -> float:
    common = sum((Counter(found) & Counter(true)).values())
    return 2 * common / (len(found) + len(true)) if found or true else 1.0
