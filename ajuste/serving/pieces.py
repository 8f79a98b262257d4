"""Tokens to text while they come: pieces that never have to be taken back, and an end at a stop string or a refusal.

A character may be spread over tokens (`é` is two bytes), so what decodes to an incomplete character waits for the rest;
what may be the beginning of a stop string waits until it is or is not one, and so does what a filter may still find
something in (ajuste/rows/filters/stream.py). All pieces joined are the whole text, without what the filter masks.
"""

from collections.abc import Sequence
from typing import Any

from ajuste.rows.filters.stream import Stream

BROKEN = "\ufffd"           # how an incomplete character decodes


class Pieces:
    """The text of one answer. `add` and `end` give what is certain by now; `stopped` says that a stop string came, or
    that the filter `guard` refuses what comes next: then `refused` is true too."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), guard: Stream | None = None) -> None:
        self.stopped = self.refused = False
        self._tokenizer, self._stop, self._guard = tokenizer, stop, guard
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
        return self._passed(self._release(piece, last=False), last=False)

    def end(self) -> str:
        """What was still waiting, an incomplete character included; after a stop string what the filter held back."""
        return self._passed(self._release(self._decode()[self._sent:], last=True), last=True)

    def _passed(self, piece: str, last: bool) -> str:
        """What the filter lets through."""
        if self._guard is None:
            return piece
        piece = self._guard.push(piece) if piece else ""
        piece += self._guard.end() if last else ""
        self.refused = self._guard.refused is not None
        self.stopped = self.stopped or self.refused
        return piece

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
