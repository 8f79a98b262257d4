"""Tagged words as token ids: one label a word.

A word may become several word pieces; its tag stands on the first, the others and the special tokens get -100, which
neither loss nor score counts. A row longer than `max_tokens` loses its last words, with their tags.
"""

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from ajuste.core.errors import DataError
from ajuste.learning.losses.cross_entropy import IGNORED

INTEGERS = pa.list_(pa.int32())
COLUMNS = pa.schema([("input_ids", INTEGERS), ("labels", INTEGERS), ("length", pa.int32())])


def encode_words(tokenizer: PreTrainedTokenizerBase, rows: list[dict], labels: list[str], max_tokens: int) -> pa.Table:
    """Rows {words, tags, location} as input_ids, labels (lists of int32), and length, the tokens before the cut.

    labels: tags in id order. Raises DataError that names the row's location: no words, or a tag that is no label.
    """
    ids = {name: i for i, name in enumerate(labels)}
    encoded = []
    for row in rows:
        words, tags = row["words"], row["tags"]
        if not words or len(words) != len(tags):
            raise DataError(f"{row['location']}: `words` and `tags` must be lists of one length, and not empty")
        unknown = [tag for tag in tags if tag not in ids]
        if unknown:
            raise DataError(f"{row['location']}: tag {unknown[0]!r} is not one of {', '.join(labels)}")
        length = len(tokenizer(words, is_split_into_words=True, verbose=False)["input_ids"])
        pieces = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_tokens)
        word_of = pieces.word_ids()
        first = [word is not None and word != before for word, before in zip(word_of, [None, *word_of], strict=False)]
        encoded.append({
            "input_ids": pieces["input_ids"],
            "labels": [ids[tags[word]] if opens else IGNORED for word, opens in zip(word_of, first, strict=True)],
            "length": length,
        })  # fmt: skip
    return pa.Table.from_pylist(encoded, COLUMNS)
