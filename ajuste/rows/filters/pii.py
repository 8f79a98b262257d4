r"""Personal data of a text that a form and a check can tell: what they are, and where.

    email        local@host.tld
    iban         ISO 13616: remainder 1 modulo 97, and the length and form of its country      python-stdnum
    card         ISO/IEC 7812: Luhn sum 0 modulo 10, and the first digits and length of a network (Visa, Mastercard,
                 American Express, Diners, Discover, JCB, UnionPay)
    national_id  12 kinds of identity numbers, each with its own check: national.py              python-stdnum
    ip           an IPv4 or IPv6 address that is public: a private or reserved one leads to nobody
    phone        a number that the numbering plan of its country has; `regions` says how numbers without + are read
                                                                                                 phonenumbers

Names, addresses of streets and what a text tells of somebody in words are not found: no check tells them.

What may be looked at together is a *run*: letters, digits and the signs of these forms without a gap, and over one
blank where digits or capitals go on (`4111 1111 ...`, `ES91 2100 ...`). Findings of a run depend on that run alone, so
a text may be filtered while it comes: `settled` says up to where no later character can change what was found
(stream.py).
Serving's log uses forms that are wider and unchecked (ajuste/serving/log/redact.py): there a number too many costs
nothing.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence

import phonenumbers
from phonenumbers.phonenumbermatcher import Leniency
from stdnum import iban, luhn

from ajuste.rows.checks.turns import EMAIL
from ajuste.rows.filters import national
from ajuste.rows.filters.findings import Finding

KINDS = ("email", "phone", "card", "iban", "national_id", "ip")
SIGNS = r"A-Za-z0-9\u00c0-\u024f._%+@:()/\-"
BLANK = r"[ \u00a0]"
# a blank between digits or capitals that go on: a number's next group (2100, ES91, (0)), four letters, a check letter
JOIN = rf"(?<=[\dA-Z)]){BLANK}(?:(?=[+(]{{0,2}}[A-Z]{{0,4}}\d)|(?<=\d{BLANK})(?=(?:[A-Z]{{4}}|[A-Z])(?![{SIGNS}])))"
RUN = re.compile(rf"[{SIGNS}]+(?:{JOIN}[{SIGNS}]+)*")
AHEAD = 9  # characters behind a run after which nothing can join it any more

IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11,}")
CARD = re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,}(?!\d)")
NETWORK = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]\d\d|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720))\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[68]\d)\d{11}|(?:6011|64[4-9]\d|65\d\d)\d{12,15}|35(?:2[89]|[3-8]\d)\d{12,15}|62\d{14,17}"
)
IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])")
GROUP = re.compile(r"[A-Za-z0-9]+")


class Pii:
    """Finds the kinds of personal data that it was made for."""

    def __init__(self, kinds: Sequence[str] = KINDS, regions: Sequence[str] = ()) -> None:
        self._finders = [(kind, FINDERS[kind]) for kind in FINDERS if kind in kinds]
        self._regions = [None, *regions] if "phone" in kinds else []

    def find(self, text: str) -> list[Finding]:
        """The findings, in order and without overlaps. An IBAN goes before a card, a card before an identity number,
        all of them before a telephone number."""
        found = []
        for run in RUN.finditer(text):
            if "@" in run[0] or any(map(str.isdigit, run[0])) or run[0].count(":") > 1:
                found += [Finding(kind, run.start() + a, run.start() + b) for kind, a, b in self._in_run(run[0])]
        return found

    def settled(self, text: str, limit: int) -> int:
        """The last place up to `limit` that no run spans, whatever is added to the text."""
        for run in RUN.finditer(text):
            if run.end() > min(limit, len(text) - AHEAD):
                return min(run.start(), limit)
        return limit

    def _in_run(self, run: str) -> list[tuple[str, int, int]]:
        taken: list[tuple[str, int, int]] = []
        for kind, finder in self._finders:
            taken += [(kind, a, b) for a, b in finder(run) if _free(taken, a, b)]
        if sum(map(str.isdigit, run)) >= 7:
            for region in self._regions:
                for a, b in _phones(run, region):
                    if _free(taken, a, b):
                        taken.append(("phone", a, b))
        return sorted(taken, key=lambda one: one[1])


def _free(taken: list[tuple[str, int, int]], start: int, end: int) -> bool:
    return all(end <= a or b <= start for _, a, b in taken)


def _emails(run: str) -> Iterator[tuple[int, int]]:
    return (match.span() for match in EMAIL.finditer(run)) if "@" in run else iter(())


def _ibans(run: str) -> Iterator[tuple[int, int]]:
    for match in IBAN.finditer(run):
        yield from _parts(match, 15, 34, lambda part: part[:2].isalpha() and iban.is_valid(part))


def _cards(run: str) -> Iterator[tuple[int, int]]:
    for match in CARD.finditer(run):
        yield from _parts(match, 13, 19, lambda part: bool(NETWORK.fullmatch(part)) and luhn.is_valid(part))


def _parts(match: re.Match, least: int, most: int, right: Callable[[str], bool]) -> Iterator[tuple[int, int]]:
    """The parts of a match that are `right`: whole groups of `least` to `most` characters, the longest from the left.

    Other numbers and words in capitals may stand before and behind an account's or a card's.
    """
    groups = list(GROUP.finditer(match[0]))
    first = 0
    while first < len(groups):
        wholes, compact = [], ""
        for last in range(first, len(groups)):
            compact += groups[last][0]
            if len(compact) > most:
                break
            wholes.append((last, compact))
        for last, compact in reversed(wholes):
            if len(compact) >= least and right(compact):
                yield match.start() + groups[first].start(), match.start() + groups[last].end()
                first = last
                break
        first += 1


def _addresses(run: str) -> Iterator[tuple[int, int]]:
    for match in [*IPV4.finditer(run), *IPV6.finditer(run)]:
        try:
            public = ipaddress.ip_address(match[0]).is_global
        except ValueError:
            continue
        if public and (":" not in match[0] or sum(map(str.isalnum, match[0])) >= 4):  # `a::b` is a scope in a program
            yield match.span()


def _phones(run: str, region: str | None) -> Iterator[tuple[int, int]]:
    if region is None and "+" not in run:
        return
    for match in phonenumbers.PhoneNumberMatcher(run, region, leniency=Leniency.VALID):
        lone = match.raw_string.startswith("(") and match.raw_string.count("(") > match.raw_string.count(")")
        yield match.start + lone, match.end  # `(+34 ...)`: the bracket around it is none of the number's


FINDERS: dict[str, Callable[[str], Iterator[tuple[int, int]]]] = {  # in the order in which they take
    "email": _emails,
    "iban": _ibans,
    "card": _cards,
    "national_id": lambda run: iter(national.spans(run)),
    "ip": _addresses,
}
