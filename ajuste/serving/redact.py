r"""What is personal or secret in a text, by its form, replaced by its kind: `Write to a@b.org` -> `Write to <EMAIL>`.

    <KEY>       a private key between its BEGIN and END lines
    <USER>      user and password in a URL, https://<USER>@host/...
    <PASSWORD>  what stands after `password=`, `api_key:` and the like
    <EMAIL>     an e-mail address
    <TOKEN>     an API key: a known prefix (sk-, ghp_, AKIA, ...), a JWT, a UUID, 24 letters and digits in a row
    <IBAN>      two letters, two digits, up to 30 more, remainder 1 modulo 97 (ISO 13616)
    <CARD>      13 to 19 digits whose Luhn sum is 0 modulo 10
    <IP>        an IPv4 or IPv6 address
    <PHONE>     + and 7 to 15 digits, or 9 to 15 digits in groups as telephone numbers have them
    <NUMBER>    9 digits or more in a row, and a US social security number

Forms alone: names, street addresses and what a text tells of a person in words stay. No pattern looks back further than
a bounded number of characters, so the time is linear in the text.
"""

import ipaddress
import re
from collections.abc import Callable

KEY = re.compile(r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,30}PRIVATE KEY-----|\Z)", re.DOTALL)
USER = re.compile(r"(?<=://)[^\s/@]{1,256}@")
PASSWORD = re.compile(
    r"\b((?:password|passwd|pwd|passphrase|api[_-]?key|access[_-]?key|secret[_-]?key|auth[_-]?token|access[_-]?token|"
    r"client[_-]?secret)[\"']?\s{0,3}[=:]\s{0,3})[^\s,;&]{4,}", re.IGNORECASE)
BEARER = re.compile(r"\b(bearer\s{1,3})[\w.~+/-]{16,}=*", re.IGNORECASE)
EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+'-]{1,256}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")
TOKEN = re.compile(
    r"\b(?:eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?|(?:sk|pk|rk)[-_][\w-]{16,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|"
    r"glpat-[\w-]{16,}|xox[a-z]-[\w-]{10,}|hf_\w{20,}|AIza[\w-]{30,}|(?:AKIA|ASIA)[A-Z0-9]{16}|"
    r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})(?![\w-])")
LONG = re.compile(r"(?<!\w)(?=[A-Za-z_]*\d)(?=[\d_]*[A-Za-z])\w{24,}", re.ASCII)
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}\b", re.IGNORECASE)
CARD = re.compile(r"(?<![\d.,])\d(?:[ -]?\d){12,18}(?!\d)")
IPV4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.]*\d)")
IPV6 = re.compile(
    r"(?<![\w:.])[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7}(?:\d{0,3}(?:\.\d{1,3}){3})?(?![\w:])", re.IGNORECASE)
ABROAD = re.compile(r"(?<![\w+])(?:\+|00(?=[1-9]))\d(?:[ ().\-/]{0,3}\d){6,14}(?!\d)")
AT_HOME = re.compile(r"(?<![\w.,+-])\(?\d{2,5}\)?(?:[ .\-/]{1,2}\d{2,8}){1,5}(?![\w:]|[.,]\d)")
SOCIAL, NUMBER = re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])"), re.compile(r"\d{9,}")


def secrets_out(text: str) -> str:
    """The text with placeholders for keys, passwords and API keys alone: what no log of ours may hold."""
    text = KEY.sub("<KEY>", text)
    text = USER.sub("<USER>@", text)
    text = BEARER.sub(r"\1<TOKEN>", PASSWORD.sub(r"\1<PASSWORD>", text))
    return TOKEN.sub("<TOKEN>", text)


def redact(text: str) -> str:
    """The text with placeholders for all of these."""
    text = secrets_out(text)
    text = EMAIL.sub("<EMAIL>", text)
    text = LONG.sub(_iban_or_token, text)
    text = IBAN.sub(lambda found: _beginning(found[0], 15, mod97, "<IBAN>"), text)
    text = CARD.sub(lambda found: _beginning(found[0], 13, luhn, "<CARD>"), text)
    text = IPV4.sub(_address, IPV6.sub(_address, text))
    text = SOCIAL.sub("<NUMBER>", text)
    text = AT_HOME.sub(_phone, ABROAD.sub("<PHONE>", text))
    return NUMBER.sub("<NUMBER>", text)


def luhn(digits: str) -> bool:
    """Whether the digits, separators left out, have a Luhn sum of 0 modulo 10: every second one from the right twice,
    its digits summed."""
    numbers = [int(digit) for digit in reversed(digits) if digit.isdigit()]
    return sum(n if i % 2 == 0 else sum(divmod(2 * n, 10)) for i, n in enumerate(numbers)) % 10 == 0


def mod97(iban: str) -> bool:
    """Whether an IBAN's check digits are right: its first four at the end, letters as 10 to 35, remainder 1."""
    plain = "".join(c for c in iban.upper() if c.isalnum())
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def _beginning(text: str, least: int, right: Callable[[str], bool], placeholder: str) -> str:
    """The longest beginning of whole groups, `least` characters or more, that is `right` is replaced: words in capitals
    may follow an IBAN, another number a card's."""
    for end in range(len(text), least - 1, -1):
        whole = text[end - 1].isalnum() and not text[end: end + 1].isalnum()
        if whole and sum(c.isalnum() for c in text[:end]) >= least and right(text[:end]):
            return placeholder + text[end:]
    return text


def _iban_or_token(found: re.Match) -> str:
    text = found[0]
    return "<IBAN>" if IBAN.fullmatch(text) and mod97(text) else "<TOKEN>"


def _address(found: re.Match) -> str:
    text = found[0]
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return text
    bare = sum(c.isalnum() for c in text)
    return "<IP>" if "." in text or bare >= 4 or text == "::1" else text       # `a[::2]` is no address


def _phone(found: re.Match) -> str:
    """Whether groups of digits are a telephone number: not years, dates, scores or small sums."""
    text = found[0]
    groups = re.findall(r"\d+", text)
    total = sum(map(len, groups))
    years = all(len(group) == 4 and group[:2] in ("19", "20") for group in groups)
    short = min(map(len, groups)) < 3 and not text.startswith(("0", "("))
    return text if not 9 <= total <= 15 or years or short else "<PHONE>"
