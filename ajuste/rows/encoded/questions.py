"""Questions and their contexts as token ids: [CLS] question [SEP] context [SEP], with the tokens of the answer.

The context is cut at its end. A row whose answer is cut away gets -100 for both positions: the loss leaves it out, and
it is scored like any other. Differs from BERT's recipe: no second segment id, no sliding window over long contexts.
"""

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from ajuste.core.errors import DataError
from ajuste.learning.losses.cross_entropy import IGNORED

INTEGERS = pa.list_(pa.int32())
COLUMNS = pa.schema(
    [("input_ids", INTEGERS), ("start", pa.int32()), ("end", pa.int32()), ("offsets", INTEGERS)]
    + [("context", pa.string()), ("answers", pa.list_(pa.string())), ("length", pa.int32())]
)


def encode_questions(
    tokenizer: PreTrainedTokenizerBase, rows: list[dict], labels: list[str], max_tokens: int
) -> pa.Table:
    """Rows {question, context, answers, answer_start, location} as COLUMNS. labels: none, a span has no classes.

    start, end: token positions. offsets: characters of each context token, -1 elsewhere. length: tokens before the cut.
    Raises DataError that names the row's location: an empty value, an answer that does not stand where it should, or a
    question that leaves no room for a context.
    """
    encoded = []
    for row in rows:
        missing = [key for key in ("question", "context", "answers", "answer_start") if row[key] in (None, "", [])]
        if missing:
            raise DataError(f"{row['location']}: `{missing[0]}` is missing or empty")
        first, last = row["answer_start"], row["answer_start"] + len(row["answers"][0]) - 1
        if row["context"][first : last + 1] != row["answers"][0]:
            raise DataError(f"{row['location']}: the context has no {row['answers'][0]!r} at character {first}")
        asked = len(tokenizer(row["question"], verbose=False)["input_ids"])
        if asked + 2 > max_tokens:  # a token of the context, and the [SEP] after it
            raise DataError(f"{row['location']}: the question has {asked} tokens, and max_tokens is {max_tokens}")
        encoded.append(_encoded(tokenizer, row, first, last, max_tokens))
    return pa.Table.from_pylist(encoded, COLUMNS)


def _encoded(tokenizer: PreTrainedTokenizerBase, row: dict, first: int, last: int, max_tokens: int) -> dict:
    length = len(tokenizer(row["question"], row["context"], verbose=False)["input_ids"])
    pieces = tokenizer(
        row["question"], row["context"], truncation="only_second", max_length=max_tokens, return_offsets_mapping=True
    )
    inside = [part == 1 for part in pieces.sequence_ids()]
    spans = [span if keep else (-1, -1) for span, keep in zip(pieces["offset_mapping"], inside, strict=True)]
    start, end = _token_at(spans, first), _token_at(spans, last)
    if IGNORED in (start, end):
        start = end = IGNORED
    return {
        "input_ids": pieces["input_ids"], "start": start, "end": end, "length": length,
        "offsets": [character for span in spans for character in span],
        "context": row["context"], "answers": row["answers"],
    }  # fmt: skip


def _token_at(spans: list[tuple[int, int]], character: int) -> int:
    """The token that covers a character of the context, -100 if it was cut away."""
    return next((i for i, (start, stop) in enumerate(spans) if start <= character < stop), IGNORED)
