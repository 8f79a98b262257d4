"""Labels of a conversation, and what is cut of one that is too long.

    labels[t] = input_ids[t] if the token is trained (a response and its end of turn), else -100       not shifted
    a response of weight 0 is not trained, nor is its end of turn
    L = - sum over trained t of log p(input_ids[t] | input_ids[:t])

Prompts and padding are not trained. labels[0] is always -100: nothing stands before the first token, so no loss has a
term for it, and the number of labels that are not -100 is the number of terms.

A row of more than `max_tokens` is cut at its text, so that the chat template still writes every turn that is left;
what follows its last trained response goes first:

    1. whole exchanges, a question and its answer, the oldest first; the system message and the last exchange stay
    2. the beginning of the last question, then the beginning of the system message, as much as needed, while the
       prompt is longer than a quarter of max_tokens: a response without its question would teach to ignore questions
    3. the end of the last response, which then has no end of turn; nothing left of it: the row is dropped

A text row loses its end. What was cut is counted in tokens and never silently.

    row = fit(tokenizer, messages, 512)
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ajuste.learning.losses.cross_entropy import IGNORED
from ajuste.learning.text.chat import Message, Segment, segments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


KEPT = 4  # a prompt is not cut below max_tokens // KEPT


@dataclass(frozen=True, slots=True)
class Row:
    """One row of training: `input_ids` and `labels` have the same length, at most max_tokens."""

    input_ids: list[int]
    labels: list[int]
    prompt_tokens: int  # before the last trained response: what a generation of it starts from
    length: int  # before any cut
    prompt_cut: int  # tokens before the last response that were cut
    response_cut: int  # tokens of the last response that were cut

    @property
    def trained(self) -> int:
        return len(self.labels) - self.labels.count(IGNORED)


def labels_of(found: list[Segment]) -> tuple[list[int], list[int]]:
    """(input_ids, labels) of segments laid end to end."""
    ids = [token for part, _ in found for token in part]
    labels = [token if trained else IGNORED for part, trained in found for token in part]
    return ids, [IGNORED, *labels[1:]]


def fit(tokenizer: "Tokenizer", messages: list[Message], max_tokens: int) -> Row | None:
    """The row of a conversation, cut to `max_tokens`; None if nothing of its response would be left.

    Raises ValueError if the conversation cannot be written (ajuste/learning/text/chat.py).
    """
    found = segments(tokenizer, messages)
    length = _size(found)
    if length > max_tokens:
        while found and not found[-1][1]:
            found, messages = found[:-2], messages[:-2]
    if not any(trained for _, trained in found):
        return None
    before, response = _size(found[:-1]), len(found[-1][0])
    if before + response > max_tokens and messages[0]["role"] != "text":
        found = _shorten(tokenizer, messages, found, max_tokens)
    prompt = _size(found[:-1])
    last = found[-1][0][: max(0, max_tokens - prompt)]
    ids, labels = labels_of([*found[:-1], (last, found[-1][1])])
    answered = max(i for i, (_, trained) in enumerate(found) if trained)
    row = Row(ids, labels, _size(found[:answered]), length, before - prompt, length - before - len(last))
    return row if row.trained else None


def _shorten(tokenizer: "Tokenizer", messages: list[Message], found: list[Segment], most: int) -> list[Segment]:
    """Segments of the conversation with its prompt cut until it fits, or until no more of it may be cut."""

    def excess() -> int:
        return min(_size(found) - most, _size(found[:-1]) - most // KEPT)

    system = messages[:1] if messages[0]["role"] == "system" else []
    turns = messages[len(system) :]
    while _size(found) > most and len(turns) > 2:
        turns = turns[2:]
        found = segments(tokenizer, [*system, *turns])
    kept = [*system, *turns]
    for place in [len(kept) - 2, *range(len(system))]:
        while excess() > 0 and kept[place]["content"]:
            shorter = _without(tokenizer, kept[place]["content"], excess())
            kept = [*kept[:place], {**kept[place], "content": shorter}, *kept[place + 1 :]]
            found = segments(tokenizer, kept)
    return found


def _without(tokenizer: "Tokenizer", text: str, tokens: int) -> str:
    """The text without its first tokens: at least one character shorter."""
    starts = [start for start, _ in tokenizer(text, add_special_tokens=False, return_offsets_mapping=True,
                                              verbose=False)["offset_mapping"]]  # fmt: skip
    return next((text[start:] for start in starts[tokens:] if start > 0), "")  # a character may be several tokens


def _size(found: list[Segment]) -> int:
    return sum(len(part) for part, _ in found)
