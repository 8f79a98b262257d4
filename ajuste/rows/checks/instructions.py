"""What is measured on a row of messages, and the checks on it as Great Expectations' own expectations.

    repeats              how often the same sentence or line of three words and more stands in a response, or, if that
                         is more, how often a run of up to 20 words follows on itself (counted from 12 words in all)
    template characters  what a chat template or tokenizer puts between the turns: <|im_start|>, [INST], <instruction>,
                         </s> ...: inside a turn they would end it, or begin one that nobody wrote
    PII                  e-mail, phone, card number (Luhn), IBAN (remainder 1 modulo 97), IPv4. Patterns, so they miss
                         some and see some that are none; counts leave this file, texts do not

Cleaning keeps what a web page would leave in a review, for code and markup may be what an instruction is about: only
line ends, blanks around, and Windows-1252 read as Latin-1 are put right.
"""

import re
from collections import Counter

import numpy as np

from ajuste.rows.checks.expectations import MOJIBAKE, gxe
from ajuste.rows.clean import C1, cp1252, damage
from ajuste.rows.split import split_text

CLEANED = ("windows_1252",)
PII = ("email", "phone", "card", "iban", "ip")
LOOP_WORDS, LOOP_LEAST = 20, 12
SENTENCE = re.compile(r"[.!?]+\s|\n+")
ROLES = r"^(?:text|(?:system )?user assistant(?: user assistant)*)$"
TEMPLATE = re.compile(
    r"<[|｜][^<>|｜\s]{1,40}[|｜]>|\[/?INST\]|<</?SYS>>|</?s>|<(?:bos|eos|pad|unk)>|<(?:start|end)_of_turn>"
    r"|</?(?:instruction|response)>|^###\s?(?:Instruction|Input|Response):",
    re.MULTILINE,
)
EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{2,63}){1,5}")
CARD = re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?![\d.]?\d)")
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
IP = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\w)")
PHONE = re.compile(
    r"(?<![\w+])(?:\+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,5}|\(\d{2,4}\) ?\d{3,4}[ .-]\d{3,4}"
    r"|\d{3}[ .-]\d{3}[ .-]\d{4})(?!\w)"
)


def clean(text: str) -> tuple[str, list[str]]:
    """The cleaned content of a turn, and which of CLEANED it needed."""
    needed = []
    if not text.isascii() and C1.search(text):
        needed, text = ["windows_1252"], C1.sub(cp1252, text)
    return text.replace("\r\n", "\n").replace("\r", "\n").strip(), needed


def measure(messages: list[dict], instruction: str | None) -> dict:
    """The columns that row_checks judges, of cleaned messages. None: there is nothing of the kind to judge."""
    users, answers, texts = (
        [message["content"] for message in messages if message["role"] == role]
        for role in ("user", "assistant", "text")
    )
    contents = [message["content"] for message in messages]
    pairs = zip(messages, messages[1:], strict=False)
    found = next((match for content in contents if (match := TEMPLATE.search(content))), None)
    asked = [len(text) for text in users] + ([len(instruction.strip())] if instruction is not None else [])
    return {
        "damage": sum(damage(content) for content in contents),
        "roles": " ".join(message["role"] for message in messages),
        "instruction_chars": min(asked, default=None),
        "response_chars": min(map(len, answers), default=None),
        "text_chars": min(map(len, texts), default=None),
        "chars": sum(map(len, contents)),
        "echoes": sum(
            one["role"] == "user" and other["role"] == "assistant"
            and one["content"] != "" and split_text(one["content"]) == split_text(other["content"])
            for one, other in pairs
        ),
        "repeats": max(map(repeats, answers), default=0),
        "template": found and found.group(),
        "text": "\n".join(contents),
    }  # fmt: skip


def repeats(text: str) -> int:
    """How often the most repeated sentence, line or run of words stands in a text; 1 if none is repeated."""
    sentences = (" ".join(part.casefold().split()).strip(" .!?") for part in SENTENCE.split(text))
    counts = Counter(sentence for sentence in sentences if sentence.count(" ") >= 2)
    most = max(counts.values(), default=1)
    words = text.casefold().split()
    if len(words) < LOOP_LEAST:
        return most
    ids = np.unique(words, return_inverse=True)[1]
    for period in range(1, LOOP_WORDS + 1):
        same = ids[period:] == ids[:-period]
        if np.count_nonzero(same) >= max(1, LOOP_LEAST - period):  # cheap, and true of few texts
            differ = np.flatnonzero(~same)
            longest = int(np.diff(differ, prepend=-1, append=len(ids) - period).max()) - 1
            if longest and longest + period >= LOOP_LEAST:
                most = max(most, longest // period + 1)
    return most


def pii(text: str) -> Counter:
    """How many matches of each of PII a text holds."""
    found: Counter = Counter(email=len(EMAIL.findall(text)))
    if not re.search(r"\d", text):
        return +found
    ibans = {match.span(): match.group() for match in IBAN.finditer(text)}
    ibans = [span for span, value in ibans.items() if _iban(value)]
    cards = [match.span() for match in CARD.finditer(text) if _luhn(match.group())]
    taken = ibans + cards
    cards = [span for span in cards if not any(a <= span[0] < b for a, b in ibans)]
    phones = [span for span in (match.span() for match in PHONE.finditer(text))
              if 7 <= sum(c.isdigit() for c in text[slice(*span)]) <= 15
              and not any(a <= span[0] < b for a, b in taken)]  # fmt: skip
    addresses = [value for value in IP.findall(text) if all(int(part) < 256 for part in value.split("."))]
    found.update(phone=len(phones), card=len(cards), iban=len(ibans), ip=len(addresses))
    return +found


def _luhn(number: str) -> bool:
    digits = [int(c) for c in number if c.isdigit()][::-1]
    return len(set(digits)) > 1 and sum(digits[::2] + [sum(divmod(2 * d, 10)) for d in digits[1::2]]) % 10 == 0


def _iban(number: str) -> bool:
    compact = number.replace(" ", "")
    return 15 <= len(compact) <= 34 and int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


COLUMNS = ("row", "problem", "damage", "roles", "instruction_chars", "response_chars", "text_chars", "chars", "echoes",
           "repeats", "template", "contaminated_by", "pii", "text")  # fmt: skip
TEXTS = {"problem", "roles", "template", "contaminated_by", "text"}  # the other columns hold numbers


def row_checks(max_chars: int, max_repeats: int) -> list[gxe.Expectation]:
    """What a row must be by itself, on a frame of COLUMNS."""

    def between(column: str, check: str, **limits: int) -> gxe.Expectation:
        return gxe.ExpectColumnValuesToBeBetween(column=column, meta={"check": check}, **limits)

    def absent(column: str, check: str) -> gxe.Expectation:
        return gxe.ExpectColumnValuesToBeNull(column=column, meta={"check": check})

    return [
        absent("problem", "unreadable_row"),
        between("damage", "encoding_damage", max_value=0),
        gxe.ExpectColumnValuesToMatchRegex(column="roles", regex=ROLES, meta={"check": "role_order"}),
        between("instruction_chars", "empty_instruction", min_value=1),
        between("response_chars", "empty_response", min_value=1),
        between("text_chars", "empty_text", min_value=1),
        between("echoes", "response_equals_instruction", max_value=0),
        between("chars", "over_long", max_value=max_chars),
        between("repeats", "repeated_response", max_value=max_repeats),
        absent("template", "template_characters"),
        absent("contaminated_by", "contaminated"),
        between("pii", "pii", max_value=0),
        gxe.ExpectColumnValuesToNotMatchRegex(column="text", regex=MOJIBAKE, meta={"check": "mojibake"}),
    ]
