r"""What is personal or secret in a text, by its form, replaced by its kind: `Write to a@b.org` -> `Write to <EMAIL>`.

    <KEY>, <USER>, <PASSWORD>, <TOKEN>    what is secret: credentials.py; the formats of API keys that detect-secrets
                knows (Apache-2.0); 24 letters and digits in a row, 40 of base64
    <EMAIL>     an e-mail address
    <IBAN>      two letters, two digits, up to 30 more, remainder 1 modulo 97 (ISO 13616)
    <CARD>      13 to 19 digits whose Luhn sum is 0 modulo 10
    <IP>        an IPv4 or IPv6 address
    <ID>        a national identity number that its check tells (python-stdnum, ajuste/rows/filters/national.py), and
                what stands behind DNI, SSN, passport and the like, whatever its check says
    <PHONE>     + and 7 to 15 digits; 9 to 15 digits in groups as telephone numbers have them; what the numbering plan
                of one of REGIONS has (phonenumbers); 555-1234
    <NUMBER>    9 digits or more in a row, and a US social security number

What is found of 300 made-up lines, and what wrongly: docs/measured/redaction.md, by `python -m benchmarks.redaction`.
Forms alone: names, street addresses and what a text tells of a person in words stay. No pattern looks back further than
a bounded number of characters, so the time is linear in the text.
"""

import ipaddress
import re
from collections.abc import Callable

from detect_secrets.plugins import (
    aws,
    azure_storage_key,
    discord,
    github_token,
    gitlab_token,
    mailchimp,
    pypi_token,
    sendgrid,
    slack,
    square_oauth,
    stripe,
    telegram_token,
    twilio,
)

from ajuste.rows.filters.pii import Pii
from ajuste.serving.log.credentials import secrets_out

REGIONS = ("ES", "US", "MX", "GB")
FINDER = Pii(("national_id", "phone"), REGIONS)
# Of detect-secrets the formats of a bounded length. Its keyword patterns want a line of source code, and its
# entropy a quoted string: neither is what people write to a model.
FORMATS = [pattern.pattern for detector in (
    azure_storage_key.AzureStorageKeyDetector, discord.DiscordBotTokenDetector, github_token.GitHubTokenDetector,
    gitlab_token.GitLabTokenDetector, mailchimp.MailchimpDetector, pypi_token.PypiTokenDetector,
    sendgrid.SendGridDetector, slack.SlackDetector, square_oauth.SquareOAuthDetector, stripe.StripeDetector,
    telegram_token.TelegramBotTokenDetector, twilio.TwilioKeyDetector,
) for pattern in detector.denylist] + [aws.AWSKeyDetector.denylist[0].pattern]  # fmt: skip
KNOWN = re.compile("|".join(rf"(?<![A-Za-z0-9])(?:{form})[\w-]*" for form in FORMATS))

EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+'-]{1,256}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")
BASE64 = re.compile(
    r"(?<![\w+/=.-])(?=\S{0,39}\d)(?=\S{0,39}[a-z])(?=\S{0,39}[A-Z])[A-Za-z0-9+/]{40}(?![\w+/=-])")
LONG = re.compile(r"(?<!\w)(?=[A-Za-z_]*\d)(?=[\d_]*[A-Za-z])\w{24,}", re.ASCII)
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}\b", re.IGNORECASE)
CARD = re.compile(r"(?<![\d.,])\d(?:[ -]?\d){12,18}(?!\d)")
IPV4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.]*\d)")
IPV6 = re.compile(
    r"(?<![\w:.])[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7}(?:\d{0,3}(?:\.\d{1,3}){3})?(?![\w:])", re.IGNORECASE)
ABROAD = re.compile(r"(?<![\w+])(?:\+|00(?=[1-9]))\d(?:[ ().\-/]{0,3}\d){6,14}(?!\d)")
AT_HOME = re.compile(r"(?<![\w.,+-])\(?\d{2,5}\)?(?:[ .\-/]{1,2}\d{2,8}){1,5}(?![\w:]|[.,]\d)")
LOCAL = re.compile(r"(?<![\w.,+/-])[2-9]\d{2}-\d{4}(?![\w/-]|[.,]\d)")
COUNTED = re.compile(  # what is counted from here to there: no telephone number
    r"(?:pages?|pp?\.?|lines?|rows?|from|between|rooms?|tickets?|p[áa]g(?:ina)?s?\.?|l[íi]neas?|filas?|de|entre|"
    r"entradas?|salas?)\s*$", re.IGNORECASE)
NAMED = re.compile(
    r"(?<!\w)((?:dni|nie|nif|cif|cuit|curp|rut|cpf|ssn|nino|passport|pasaporte|driver'?s? licen[cs]e|"
    r"n[ºo]\.? de la seguridad social)(?:\s(?:no\.?|number|n[ºo]\.?|número|es|is))?[\s:#=]{1,3})"
    r"(?=[A-Z0-9.-]{0,12}\d{3}|\d{2} \d{8})[A-Z0-9][\w.-]{1,24}(?: \d{2,8}){0,3}", re.IGNORECASE)
SOCIAL, NUMBER = re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])"), re.compile(r"\d{9,}")


def redact(text: str) -> str:
    """The text with placeholders for all of these."""
    text = KNOWN.sub("<TOKEN>", secrets_out(text))
    text = EMAIL.sub("<EMAIL>", text)
    text = LONG.sub(_iban_or_token, BASE64.sub("<TOKEN>", text))
    text = IBAN.sub(lambda found: _beginning(found[0], 15, mod97, "<IBAN>"), text)
    text = CARD.sub(lambda found: _beginning(found[0], 13, luhn, "<CARD>"), text)
    text = IPV4.sub(_address, IPV6.sub(_address, text))
    text = NAMED.sub(r"\1<ID>", SOCIAL.sub("<NUMBER>", text))
    text = AT_HOME.sub(_phone, _checked(ABROAD.sub("<PHONE>", text)))
    text = LOCAL.sub(_local, text)
    return NUMBER.sub("<NUMBER>", text)


def _checked(text: str) -> str:
    """Identity numbers and telephone numbers that the libraries know."""
    parts, done = [], 0
    for kind, start, end in FINDER.find(text):
        parts += [text[done:start], "<ID>" if kind == "national_id" else "<PHONE>"]
        done = end
    return "".join([*parts, text[done:]])


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


def _local(found: re.Match) -> str:
    before = found.string[max(0, found.start() - 12):found.start()]
    return found[0] if COUNTED.search(before) else "<PHONE>"


def _phone(found: re.Match) -> str:
    """Whether groups of digits are a telephone number: not years, dates, scores or small sums."""
    text = found[0]
    groups = re.findall(r"\d+", text)
    total = sum(map(len, groups))
    years = all(len(group) == 4 and group[:2] in ("19", "20") for group in groups)
    short = min(map(len, groups)) < 3 and not text.startswith(("0", "("))
    return text if not 9 <= total <= 15 or years or short else "<PHONE>"
