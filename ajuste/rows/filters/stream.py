"""A text that is filtered while it comes: what is given out never has to be taken back.

    push(piece) ... end()    all that they give, joined, is what `acted` makes of the whole text, however it was cut

What no later character can change is given out at once; the rest waits (Filter.settled): the last word, a number that
may go on, the beginning of a phrase. So a card number that comes digit by digit, or a phrase word by word, is found.
Findings of `refuse` end the text before them; all others are masked.

`before` are texts that the reader has in mind already, such as the turns before an answer: something that begins there
and ends in the text is found too, and the part of it that stands in the text is refused or masked. An address that was
whole before is not made longer by the text.
"""

from collections.abc import Callable, Collection, Iterable

from ajuste.rows.filters.filters import Filter
from ajuste.rows.filters.findings import ENDLESS, Finding, masked


def acted(text: str, findings: Iterable[Finding], refuse: Collection[str]) -> tuple[str, str | None]:
    """The text with its findings masked; of one to refuse, what stands before it, and its kind."""
    findings = list(findings)
    first = min((one for one in findings if one.kind in refuse), key=lambda one: one.start, default=None)
    if first is None:
        return masked(text, findings), None
    before = [one._replace(end=min(one.end, first.start)) for one in findings if one.start < first.start]
    return masked(text[: first.start], before), first.kind


class Stream:
    """One text. `refused` names the kind that ended it; `count("output", kinds)` is told what was found, each once."""

    def __init__(self, filter: Filter, refuse: Collection[str] = (), before: Iterable[str] = (),
                 count: Callable[[str, Iterable[str]], None] | None = None) -> None:  # fmt: skip
        self.refused: str | None = None
        self._filter, self._refuse, self._count = filter, refuse, count
        # only the end of what came before can go on in the text
        self._heads = list(dict.fromkeys(["", *(head[filter.settled(head) :] for head in before)]))
        self._held = ""

    def push(self, piece: str) -> str:
        """One more piece of the text; what is certain by now."""
        self._held += piece
        return self._release(self._settled())

    def end(self) -> str:
        """The text is whole: what was still waiting."""
        return self._release(len(self._held))

    def _settled(self) -> int:
        """The last place in what is held that nothing spans, whichever of the heads stands before it."""
        limit = len(self._held)
        while True:
            at = min(self._filter.settled(head + self._held, len(head) + limit) - len(head) for head in self._heads)
            if at <= 0 or at == limit:
                return max(at, 0)
            limit = at

    def _release(self, upto: int) -> str:
        if self.refused or not upto:
            return ""
        found = set()
        for head in self._heads:
            whole = [one for one in self._filter.find(head) if one.kind in ENDLESS] if head else []
            found |= {
                Finding(one.kind, max(one.start - len(head), 0), one.end - len(head))
                for one in self._filter.find(head + self._held)
                if len(head) < one.end <= len(head) + upto
                and not any(other.kind == one.kind and other.end > one.start for other in whole)
            }
        text, self.refused = acted(self._held[:upto], found, self._refuse)
        if found and self._count:
            self._count("output", sorted(one.kind for one in found))
        self._held, self._heads = self._held[upto:], [""]
        return text
