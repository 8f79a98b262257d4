"""What is cleaned and looked for in a turn of a conversation, of instructions and of preferences alike.

    template characters  what a chat template or tokenizer puts between the turns: <|im_start|>, [INST], <instruction>,
                         </s> ...: inside a turn they would end it, or begin one that nobody wrote
    PII                  e-mail, phone, card number (Luhn), IBAN (remainder 1 modulo 97), IPv4. Patterns, so they miss
                         some and see some that are none; counts leave this file, texts do not

Cleaning keeps what a web page would leave in a review, for code and markup may be what an instruction is about: only
line ends, blanks around, and Windows-1252 read as Latin-1 are put right.
"""

import re
from collections import Counter

from ajuste.rows.clean import C1, cp1252

CLEANED = ("windows_1252",)
PII = ("email", "phone", "card", "iban", "ip")
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
