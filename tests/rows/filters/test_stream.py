"""A text filtered while it comes is the text filtered at once, however it is cut: by brute force over all cuts."""

import csv
import re
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ajuste.rows.filters import pii
from ajuste.rows.filters.filters import Filter, made
from ajuste.rows.filters.phrases import MAX_GAP, PROFANITY, Phrases
from ajuste.rows.filters.stream import Stream, acted
from ajuste.rows.sources import find
from tests.rows.filters.texts import RIGHT

SECRETS = Phrases("phrase", ["launch code", "launch code is blue", "code", "blue moon"])
BOTH = Filter([pii.Pii(pii.KINDS, ["ES", "US"]), SECRETS])


def streamed(filter: Filter, text: str, cuts: tuple[int, ...], refuse=(), before=()) -> tuple[str, str | None]:
    stream = Stream(filter, refuse, before)
    edges = [0, *cuts, len(text)]
    pieces = [stream.push(text[a:b]) for a, b in zip(edges, edges[1:], strict=False)]
    return "".join([*pieces, stream.end()]), stream.refused


def test_all_cuts_of_a_short_text() -> None:
    """All 2^15 ways to cut `a launch code? b`, masked and refused."""
    for text in ("a launch code? b", "x launch  codes "):
        for refuse in ((), ("phrase",)):
            wanted = acted(text, SECRETS.find(text), refuse)
            filter = Filter([SECRETS])
            for k in range(len(text)):
                for cuts in combinations(range(1, len(text)), k) if k < 3 or k > len(text) - 3 else ():
                    assert streamed(filter, text, cuts, refuse) == wanted, (text, cuts)
    text = "launch code"
    for bits in range(1 << (len(text) - 1)):
        cuts = tuple(i + 1 for i in range(len(text) - 1) if bits >> i & 1)
        assert streamed(Filter([SECRETS]), text, cuts) == ("<PHRASE>", None)


@pytest.mark.parametrize("value", [values[0] for values in RIGHT.values()] + ["The launch, code"])
def test_every_boundary_and_every_pair_of_near_ones(value: str) -> None:
    text = f"Yes: {value} is it."
    wanted = acted(text, BOTH.find(text), ())[0]
    assert value not in wanted and wanted.startswith("Yes: ") and wanted.endswith(" is it.")
    inside = range(4, len(text) - 6)
    near = [(a, b) for a, b in combinations(inside, 2) if b - a < 6]
    for cuts in [*((cut,) for cut in range(1, len(text))), *near]:
        assert streamed(BOTH, text, cuts) == (wanted, None), cuts
    assert streamed(BOTH, text, tuple(range(1, len(text)))) == (wanted, None), "a character at a time"


@pytest.mark.parametrize("value", [values[0] for values in RIGHT.values()])
def test_what_is_refused_ends_the_text_before_it(value: str) -> None:
    text = f"Yes: {value} is it."
    for cut in range(1, len(text)):
        assert streamed(BOTH, text, (cut,), pii.KINDS)[0] == "Yes: "


VALUES = st.sampled_from([value for values in RIGHT.values() for value in values] + ["launch code", "is blue", "Code"])
PIECES = st.one_of(VALUES, st.text(max_size=6), st.sampled_from([" ", "\n", ", ", "12", "AB", "4111 1111", "W", "a@"]))
TEXTS = st.lists(PIECES, max_size=7).map("".join)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_text_in_any_pieces(data: st.DataObject) -> None:
    text = data.draw(TEXTS)
    cuts = tuple(sorted(data.draw(st.sets(st.integers(1, max(len(text) - 1, 1)), max_size=len(text)))))
    refuse = data.draw(st.sampled_from([(), ("card", "phrase")]))
    assert streamed(BOTH, text, cuts, refuse) == acted(text, BOTH.find(text), refuse)


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS)
def test_nothing_that_is_settled_changes_with_what_comes(text: str, more: str) -> None:
    at = BOTH.settled(text)
    before = [one for one in BOTH.find(text) if one.start < at]
    assert [one for one in BOTH.find(text + more) if one.start < at] == before
    assert all(one.end <= at for one in before) and BOTH.settled(text, at) == at


def test_ordinary_words_wait_for_little() -> None:
    """What is held back of plain text: the last word and the few characters that could make a number of it."""
    stream, given_out, text = Stream(BOTH), 0, "The quick brown fox jumps over the lazy dog, and again it does so. " * 3
    for i, character in enumerate(text, 1):
        given_out += len(stream.push(character))
        assert i - given_out <= 9 + len("again "), text[given_out:i]
    assert given_out + len(stream.end()) == len(text)


def test_a_beginning_in_what_came_before() -> None:
    """Half of the number, or of the phrase, stands in the turn before: with and without a blank between."""
    for whole in ("4111 1111 1111 1111", "launch code", "ana@example.es"):
        for cut in range(1, len(whole)):
            head, tail = whole[:cut].rstrip(), whole[cut:].lstrip()
            text, _ = streamed(BOTH, f"{tail}, yes", (1,), before=[f"I say {head}", f"I say {head} "])
            assert re.fullmatch("<[A-Z]+>, yes", text), (head, tail, text)


def test_what_was_whole_before_does_not_swallow_the_answer() -> None:
    for before in ("Write to a@b.org", "Call 4111 1111 1111 1111", "the launch code"):
        text = "Hello, 12 people wrote."
        assert streamed(BOTH, text, (3,), before=[before, f"{before} "]) == (text, None)


def test_phrases_by_words() -> None:
    for text, wanted in (
        ("LAUNCH, Code!", ["LAUNCH, Code"]), ("launch codes", []), ("relaunch code", ["code"]),
        ("launch" + " " * MAX_GAP + "code", ["launch" + " " * MAX_GAP + "code"]),
        ("launch" + " " * (MAX_GAP + 1) + "code", ["code"]), ("launch code is blue moon", ["launch code is blue"]),
        ("launch code is blu", ["launch code"]), ("ｌａｕｎｃｈ code", ["ｌａｕｎｃｈ code"]),
    ):  # fmt: skip
        assert [text[one.start : one.end] for one in SECRETS.find(text)] == wanted, text


def test_profane_words_are_those_of_the_package() -> None:
    filter = made(["profanity"])
    with find(PROFANITY).path.open(encoding="utf-8", newline="") as file:
        severities = {row["text"]: row["severity_description"] for row in csv.DictReader(file)}
    words = [word for word in sorted(severities) if word.isalpha()][::50]
    assert {severities[word] for word in words} == {"Mild", "Strong", "Severe"}
    for word in words:
        wanted = [] if severities[word] == "Mild" else [("profanity", 5, 5 + len(word))]
        assert filter.find(f"What {word.upper()} it is.") == wanted
    assert filter.find("Scunthorpe United, a classic cocktail and a bass player; she assessed the analysis.") == []
