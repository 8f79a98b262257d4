"""What leaves a text before it is kept, and what stays."""

import ipaddress
import random

import pytest

from ajuste.serving.log.redact import luhn, mod97, redact
from benchmarks import redaction as corpus


@pytest.mark.parametrize("text, wanted", [
    ("Write to jane.doe+films@mail.example.co.uk.", "Write to <EMAIL>."),
    ("<o'neil@example.org>", "<<EMAIL>>"),
    ("müller@bücher.example", "<EMAIL>"),
    ("call +49 30 901820 now", "call <PHONE> now"),
    ("call +1 (555) 123-4567.", "call <PHONE>."),
    ("0049 151 2345 6789", "<PHONE>"),
    ("(555) 123-4567", "<PHONE>"),
    ("555-123-4567", "<PHONE>"),
    ("0151-23456789", "<PHONE>"),
    ("600 123 456", "<PHONE>"),
    ("01 23 45 67 89", "<PHONE>"),
    ("card 4111 1111 1111 1111, thanks", "card <CARD>, thanks"),
    ("4111-1111-1111-1111 5 times", "<CARD> 5 times"),
    ("378282246310005", "<CARD>"),
    ("pay to DE89 3704 0044 0532 0130 00 IS MINE", "pay to <IBAN> IS MINE"),
    ("GB82WEST12345698765432", "<IBAN>"),
    ("es9121000418450200051332", "<IBAN>"),
    ("MT84MALT011000012345MTLCAST001S", "<IBAN>"),
    ("from 192.168.0.1.", "from <IP>."),
    ("at 2001:db8::ff00:42:8329 and fe80::1", "at <IP> and <IP>"),
    ("::ffff:10.0.0.1", "<IP>"),
    ("see https://user:pa55@host.example/x?y=1", "see https://<USER>@host.example/x?y=1"),
    ("ftp://joe@files.example", "ftp://<USER>@files.example"),
    ("id 1234567890", "id <NUMBER>"),
    ("ssn 078-05-1120", "ssn <NUMBER>"),
    ("sk-proj-abcDEF1234567890abcd", "<TOKEN>"),
    ("ghp_16C7e42F292c6912E7710c838347Ae178B4a", "<TOKEN>"),
    ("AKIAIOSFODNN7EXAMPLE", "<TOKEN>"),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmN", "<TOKEN>"),
    ("key 9f86d081884c7d659a2feaa0c55ad015", "key <TOKEN>"),
    ("123e4567-e89b-12d3-a456-426614174000", "<TOKEN>"),
    ("Authorization: Bearer abcdefghijklmnop1234", "Authorization: Bearer <TOKEN>"),
    ("password=hunter22; next", "password=<PASSWORD>; next"),
    ('{"api_key": "abcd1234"}', '{"api_key": "<PASSWORD>"}'),
    ("DB_PASSWORD=hunter22", "DB_PASSWORD=<PASSWORD>"),
    ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "aws_secret_access_key = <PASSWORD>"),
    ("token: 8f3kd0s92jf", "token: <PASSWORD>"),
    ("Authorization: Basic dXNlcjpwYXNzd29yZA==", "Authorization: Basic <TOKEN>"),
    ("http://u:p@ss@host", "http://<USER>@host"),
    ("DNI 12345678Z", "DNI <ID>"),
    ("el número 12345678Z", "el número <ID>"),
    ("call 555-1234", "call <PHONE>"),
    ("91 234 56 78", "<PHONE>"),
    ("xoxb-123456789012-abcdefABCDEF", "<TOKEN>"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY----- end", "<KEY> end"),
    ("-----BEGIN PRIVATE KEY-----\nMIIE", "<KEY>"),
])  # fmt: skip
def test_what_is_personal_or_secret_becomes_its_kind(text, wanted):
    assert redact(text) == wanted


@pytest.mark.parametrize("text", [
    "A warm, funny film: 10/10, 8.5 of 10 stars, in 1999 and 2001 2002 2003.",
    "On 2023-12-25 at 12:30:45, or 25.12.2023, or 12/25/2023.",
    "It cost $1,000,000, then 10 000 000; pi is 3.14159265.",
    "std::vector<int> x[::2]; a::b; version 1.2.3 and 1.2.3.4.5",
    "@jane said: me @ home, 50% off",
    "https://example.org/2023/12/the-long-title-of-a-nice-article-about-a-film?page=2",
    "Donaudampfschifffahrtsgesellschaftskapitän and antidisestablishmentarianism",
    "The password is forgotten. My secret: patience.",
    "12:30:61:70 and 999.1.1 are no addresses, 4111 1111 1111 1112 is no card, AB12 CDEF GHIJ KLMN OP no account",
    "电影很好看, фильм хороший, ١٢٣ فيلم جيد 👍🏽",
    "call 112, room 1234-5, from 10 to 20 to 30",
    "", " \n\t ",
])  # fmt: skip
def test_what_is_neither_stays(text):
    assert redact(text) == text


def test_most_of_the_made_up_lines_are_found_and_few_taken_wrongly() -> None:
    """The page in docs is of these rules, and they keep what they reached."""
    lines = corpus.read()
    assert len(lines) == 300 and {line.language for line in lines} == {"en", "es"}
    assert all(bool(line.secrets) == (line.kind != corpus.NONE) for line in lines)
    secret = [line for line in lines if line.secrets]
    ordinary = [line for line in lines if not line.secrets]
    assert sum(line.gone() for line in secret) >= 0.98 * len(secret)
    assert sum(not line.kept() for line in ordinary) <= 0.02 * len(ordinary)
    assert (corpus.ROOT / "docs" / "measured" / "redaction.md").read_text() == corpus.page(lines)
    leak = corpus.Line("en", "password", "my password is Blue42horse", ("Blue42horse",))
    whole, half = leak.text, leak.text.replace("Blue42", "<PASSWORD>")
    assert not corpus.gone(leak, whole) and not corpus.gone(leak, half), "half a secret is left"


def test_luhn_and_mod97_find_every_changed_digit():
    """By definition both find one wrong digit; so the right check digit is the only one that passes."""
    rng = random.Random(0)
    for _ in range(200):
        body = "".join(str(rng.randrange(10)) for _ in range(15))
        right = [d for d in "0123456789" if luhn(body + d)]
        # ISO/IEC 7812 by hand: from the last digit of the body leftwards, double, subtract 9 from two-digit results
        total = sum((2 * int(d) - 9 * (2 * int(d) > 9)) if i % 2 == 0 else int(d) for i, d in enumerate(body[::-1]))
        assert right == [str(-total % 10)]
        bban = "".join(rng.choice("0123456789ABCXYZ") for _ in range(18))
        digits = "".join(str("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ".index(c)) for c in bban + "DE00")
        check = 98 - int(digits) % 97
        assert [n for n in range(2, 99) if mod97(f"DE{n:02d}{bban}")] == [check]


def test_every_address_of_the_standard_library_is_found():
    rng = random.Random(1)
    for _ in range(200):
        four, six = ipaddress.IPv4Address(rng.getrandbits(32)), ipaddress.IPv6Address(rng.getrandbits(128))
        for shown in (str(four), str(six), six.exploded):
            assert redact(f"from {shown} today") == "from <IP> today", shown
