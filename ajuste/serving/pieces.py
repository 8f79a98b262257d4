"""Tokens to text while they come: pieces that never have to be taken back, and an end at a stop string.

A character may be spread over tokens (`é` is two bytes), so what decodes to an incomplete character waits for the rest;
what may be the beginning of a stop string waits until it is or is not one. All pieces joined are the whole text.
"""

from collections.abc import Sequence
from typing import Any

BROKEN = "\ufffd"           # how an incomplete character decodes


class Pieces:
    """The text of one answer. `add` and `end` give what is certain by now; `stopped` says that a stop string came."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self._tokenizer, self._stop = tokenizer, stop
        self._ids: list[int] = []
        self._begin = self._clean = 0       # _ids[_begin:_clean] is decoded again with what follows: a token's text
        self._sent = 0                      # depends on the one before it; of that text so many characters are sent
        self._held = ""

    def add(self, token: int) -> str:
        """The text that became certain with this token; "" if none did."""
        self._ids.append(token)
        text = self._decode()
        whole = text.rstrip(BROKEN)
        piece, self._sent = text[self._sent: len(whole)], max(self._sent, len(whole))
        if whole == text:
            self._begin, self._clean = self._clean, len(self._ids)
            self._sent = len(self._decode())
        return self._release(piece, last=False)

    def end(self) -> str:
        """What was still waiting, an incomplete character included; "" after a stop string."""
        return self._release(self._decode()[self._sent:], last=True)

    def _decode(self) -> str:
        return self._tokenizer.decode(
            self._ids[self._begin:], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _release(self, piece: str, last: bool) -> str:
        if self.stopped:
            return ""
        self._held += piece
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            return self._held[: min(found)]
        beginnings = (k for stop in self._stop for k in range(1, len(stop)) if self._held.endswith(stop[:k]))
        waiting = 0 if last else max(beginnings, default=0)
        sure = len(self._held) - waiting
        piece, self._held = self._held[:sure], self._held[sure:]
        return piece
