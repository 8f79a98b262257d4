"""OpenAI's objects for an answer: of a chat, or of a text that is continued; whole, or chunk by chunk.

    choices    one a row, by index; its log-probabilities are those of the tokens whose text came since the chunk before
    usage      a prompt counts once, the tokens of all choices together
"""

import codecs
import time
import uuid
from collections.abc import Sequence
from typing import Any

from ajuste.serving.jobs import Finished
from ajuste.serving.loading import Served
from ajuste.serving.tokens import Token


class Choice:
    """One row's answer while it comes: its text, and the tokens that no chunk has shown yet."""

    def __init__(self, index: int) -> None:
        self.index, self.finished = index, None
        self.pieces: list[str] = []
        self.tokens: list[Token] = []
        self.offset = 0                         # characters before the tokens that wait
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def taken(self) -> tuple[list[Token], list[int]]:
        """The tokens that wait, and where in the text each begins; then none waits."""
        tokens, offsets, self.tokens = self.tokens, [], []
        for token in tokens:
            offsets.append(self.offset)
            self.offset += len(self._decoder.decode(token.data or b""))
        return tokens, offsets


class Shape:
    """The objects of one request. `logprobs` says whether choices have them."""

    def __init__(self, served: Served, prompt_tokens: int, text: bool, chunks: bool, logprobs: bool) -> None:
        self.text, self.logprobs, self.prompt_tokens = text, logprobs, prompt_tokens
        name = "text_completion" if text else "chat.completion"
        self.head = {
            "id": f"{'cmpl' if text else 'chatcmpl'}-{uuid.uuid4().hex}",
            "object": f"{name}.chunk" if chunks and not text else name,
            "created": int(time.time()), "model": f"{served.name}/{served.version}",
        }

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """All choices in one piece."""
        shown = []
        for choice in choices:
            text = "".join(choice.pieces)
            said = {"text": text} if self.text else {"message": {"role": "assistant", "content": text}}
            shown.append(self._choice(choice, said, choice.finished.reason))
        return self.head | {"choices": shown, "usage": self.usage(choices)}

    def piece(self, choice: Choice, text: str, first: bool = False) -> dict[str, Any]:
        """One piece of a stream; the first one of a chat names the role."""
        said = {"text": text} if self.text else {"delta": {"content": text} | ({"role": "assistant"} if first else {})}
        return self.head | {"choices": [self._choice(choice, said, None)]}

    def last(self, choice: Choice) -> dict[str, Any]:
        """The end of a choice's stream, which says why; tokens without a text of their own are told here."""
        said = {"text": ""} if self.text else {"delta": {}}
        return self.head | {"choices": [self._choice(choice, said, choice.finished.reason)]}

    def usage(self, choices: Sequence[Choice]) -> dict[str, int]:
        """How many tokens went in and came out."""
        finished: list[Finished] = [choice.finished for choice in choices]
        count = sum(one.completion_tokens for one in finished)
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": count,
                "total_tokens": self.prompt_tokens + count}

    def _choice(self, choice: Choice, said: dict[str, Any], reason: str | None) -> dict[str, Any]:
        logprobs = None
        if self.logprobs and (choice.tokens or reason and "delta" not in said):
            logprobs = _of_text(*choice.taken()) if self.text else {"content": [_of_chat(t) for t in choice.taken()[0]],
                                                                    "refusal": None}
        return {"index": choice.index, **said, "logprobs": logprobs, "finish_reason": reason}


def _of_chat(token: Token) -> dict[str, Any]:
    return _plain(token) | {"top_logprobs": [_plain(one) for one in token.top]}


def _plain(token: Token) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": None if token.data is None else list(token.data)}


def _of_text(tokens: Sequence[Token], offsets: Sequence[int]) -> dict[str, Any]:
    return {
        "tokens": [token.text for token in tokens], "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{one.text: one.logprob for one in (*token.top, token)} for token in tokens],
        "text_offset": list(offsets),
    }
