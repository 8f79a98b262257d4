"""All filters of a text behind one: personal data, profane words, phrases of one's own.

    filter = made(["email", "card", "phrase"], regions=["ES"], phrases=["launch code"])
    filter.find("a@b.org")        -> [Finding("email", 0, 7)]

    email, phone, card, iban, national_id, ip     ajuste/rows/filters/pii.py
    profanity                                     words of a packaged list: ajuste/rows/filters/phrases.py
    phrase                                        phrases that the user forbids: the same

Near-copies of evaluation sets are a matter of rows (ajuste/rows/filters/rows.py). Every filter is a function of the
text alone: same text, same findings.
"""

from collections.abc import Sequence
from typing import Protocol

from ajuste.core.errors import UsageError
from ajuste.rows.filters import pii
from ajuste.rows.filters.findings import Finding
from ajuste.rows.filters.phrases import Phrases, profane_words

KINDS = (*pii.KINDS, "profanity", "phrase")


class Part(Protocol):
    """One filter of a text."""

    def find(self, text: str) -> list[Finding]: ...

    def settled(self, text: str, limit: int) -> int: ...


class Filter:
    """Several filters as one."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts

    def find(self, text: str) -> list[Finding]:
        """The findings of all filters, by place; those of two filters may overlap."""
        return sorted((one for part in self._parts for one in part.find(text)), key=lambda one: one[1:])

    def settled(self, text: str, limit: int | None = None) -> int:
        """The last place up to `limit` (else the end) that nothing spans, whatever is added to the text: what stands
        before it is found, and is all that will be."""
        limit = len(text) if limit is None else limit
        while True:
            at = min((part.settled(text, limit) for part in self._parts), default=limit)
            if at == limit:
                return limit
            limit = at


def made(kinds: Sequence[str], regions: Sequence[str] = (), phrases: Sequence[str] = ()) -> Filter:
    """The filter of these kinds. regions: whose way of writing telephone numbers without + is read. phrases: those of
    kind `phrase`. Raises UsageError for a kind or region that there is not, or phrases where none are given."""
    check_kinds(kinds, regions)
    parts: list[Part] = [pii.Pii(kinds, regions)] if set(kinds) & set(pii.KINDS) else []
    if "profanity" in kinds:
        parts.append(profane_words())
    if "phrase" in kinds:
        own = Phrases("phrase", phrases)
        if not len(own):
            raise UsageError("kind `phrase` needs phrases: name a file that lists them, one a line")
        parts.append(own)
    return Filter(parts)


def check_kinds(kinds: Sequence[str], regions: Sequence[str] = ()) -> None:
    """Raise UsageError for the first kind or region that is not known."""
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UsageError(f"no filter `{unknown[0]}`: there is {', '.join(KINDS)}")
    if regions:
        from phonenumbers import SUPPORTED_REGIONS

        if unknown := [region for region in regions if region not in SUPPORTED_REGIONS]:
            raise UsageError(f"no region `{unknown[0]}`: regions are two capitals, such as ES, MX, US")
