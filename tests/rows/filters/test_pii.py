"""Personal data: published examples are found, their twins with a wrong check are not, nothing else changes."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stdnum import iban, luhn

from ajuste.rows.filters import pii
from ajuste.rows.filters.findings import Finding, masked, merged
from ajuste.serving.log import redact
from tests.rows.filters.texts import RIGHT, SENTENCES, WRONG

EVERY = pii.Pii(pii.KINDS, ["ES", "US"])


def found(text: str) -> list[tuple[str, str]]:
    return [(one.kind, text[one.start : one.end]) for one in EVERY.find(text)]


@pytest.mark.parametrize("kind", RIGHT)
@pytest.mark.parametrize("sentence", SENTENCES)
def test_published_examples_are_found_whole(kind: str, sentence: str) -> None:
    for value in RIGHT[kind]:
        text = sentence.replace("{}", value)
        assert found(text) == [(kind, value)] * sentence.count("{}"), text


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_check_is_not_that_kind(kind: str) -> None:
    for value in WRONG[kind]:
        assert kind not in {one for one, _ in found(f"Write {value} down.")}, value


def test_a_wrong_digit_is_found_by_the_check() -> None:
    """Luhn and ISO 7064 find every single wrong digit: none of the 9 others in any place passes."""
    for kind, value in (("card", "4111111111111111"), ("iban", "DE89370400440532013000")):
        only = pii.Pii([kind])
        for i, right in enumerate(value):
            for digit in "0123456789" if right.isdigit() else "":
                other = value[:i] + digit + value[i + 1 :]
                assert bool(only.find(other)) == (digit == right), other


@settings(max_examples=200, deadline=None)
@given(st.text("0123456789", min_size=1, max_size=20))
def test_luhn_is_the_one_of_the_log(digits: str) -> None:
    """Two independent Luhn sums, the library's and the one of ajuste/serving/log/redact.py, agree."""
    assert luhn.is_valid(digits) == redact.luhn(digits)


def test_mod97_is_the_one_of_the_log() -> None:
    for value in RIGHT["iban"]:
        for digit in "0123456789":
            other = value[:2] + digit + value[3:]
            assert iban.is_valid(other, check_country=False) == redact.mod97(other)


def test_an_account_is_not_a_card_nor_a_phone_and_words_behind_it_stay() -> None:
    assert found("ES91 2100 0418 4502 0005 1332 ES MIO") == [("iban", "ES91 2100 0418 4502 0005 1332")]
    assert found("4111 1111 1111 1111 12/26") == [("card", "4111 1111 1111 1111")]
    assert found("Order 12 4111 1111 1111 1111") == [("card", "4111 1111 1111 1111")]


def test_ordinary_numbers_are_nothing() -> None:
    text = ("In 1998, 3,141 of 12,345 people paid $1,299.99 on 24/12/2023 at 10:30:45; version 2.10.3, ISBN "
            "978-0-306-40615-7, 50% of 0.001 m, item 00012345, see a[1:2], f(x::y), 12:34 and 1990-1995.")  # fmt: skip
    assert found(text) == []


def test_national_numbers_need_their_region() -> None:
    for regions, kinds in (((), []), (("ES",), ["phone"])):
        assert [one.kind for one in pii.Pii(["phone"], regions).find("Llama al 612 345 678.")] == kinds


def test_only_the_kinds_that_are_asked_for() -> None:
    text = " ".join(value for values in RIGHT.values() for value in values)
    for kind in pii.KINDS:
        assert {one.kind for one in pii.Pii([kind], ["ES"]).find(text)} == {kind}


VALUES = st.sampled_from([value for values in RIGHT.values() for value in values])
PIECES = st.one_of(VALUES, st.text(max_size=8), st.sampled_from([" ", "\n", ", ", "12", "AB", "4111 1111"]))


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, max_size=8).map("".join))
def test_masking_changes_nothing_else(text: str) -> None:
    """Findings are in order and apart; the text between them stands in the masked text as it was, and nothing else."""
    findings = EVERY.find(text)
    assert findings == merged(findings)
    parts = re.split("|".join(f"<{kind.upper()}>" for kind in pii.KINDS), masked(text, findings))
    ends = [0, *(edge for one in findings for edge in (one.start, one.end)), len(text)]
    assert parts == [text[a:b] for a, b in zip(ends[::2], ends[1::2], strict=True)]


def test_findings_that_overlap_are_masked_once() -> None:
    findings = [Finding("b", 2, 5), Finding("a", 1, 3), Finding("c", 5, 6)]
    assert masked("0123456789", findings) == "0<A><C>6789"
    assert masked("0123456789", reversed(findings)) == "0<A><C>6789"
