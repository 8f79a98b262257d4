r"""What is secret in a text, by its form, replaced by its kind: `DB_PASSWORD=hunter2` -> `DB_PASSWORD=<PASSWORD>`.

    <KEY>       a private key between its BEGIN and END lines
    <USER>      user and password in a URL, https://<USER>@host/..., and behind `curl -u`
    <PASSWORD>  the value of a name that says it: `DB_PASSWORD=`, `aws_secret_access_key = `, `contraseña: `
    <TOKEN>     what stands behind `Authorization:` and `Cookie:`; an API key: a known prefix (sk-, ghp_, AKIA, ...), a
                JWT, a UUID

A name that prose uses too (token, secret, key, clave, pin) counts before `=`, and before `:` or `is` where the value
looks drawn: a digit in it, or a capital behind a small letter. `The password is forgotten` and `My secret: patience`
stay. A value that names where the secret is (`input(`, `$NAME`, `os.environ[...]`) stays too.

Nothing but Python is needed here: the last log of an environment that is broken is written through it too. No pattern
looks back further than a bounded number of characters, so the time is linear in the text.
"""

import re

TOKEN = re.compile(
    r"\b(?:eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?|(?:sk|pk|rk)[-_][\w-]{16,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|"
    r"glpat-[\w-]{16,}|xox[a-z]-[\w-]{10,}|hf_\w{20,}|npm_\w{16,}|AIza[\w-]{30,}|(?:AKIA|ASIA)[A-Z0-9]{16}|"
    r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})(?![\w-])")
KEY = re.compile(r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,30}PRIVATE KEY-----|\Z)", re.DOTALL)
USER = re.compile(r"(?<=://)[^\s/?#]{1,256}@")
CURL = re.compile(r"(?<!\S)((?:-u|--user)[ =])[^\s:]{1,128}:\S{1,128}")
HEADER = re.compile(
    r"\b((?:proxy-)?authorization[\"']?\s{0,3}[:=]\s{0,3}[\"']?(?:basic|bearer|token|digest|apikey|negotiate)\s{1,3}|"
    r"(?:set-)?cookie[\"']?:\s{0,3}[\w.-]{1,64}=)[^\s\"';,]{4,}", re.IGNORECASE)
BEARER = re.compile(r"\b(bearer\s{1,3})[\w.~+/-]{16,}=*", re.IGNORECASE)

SURE = (r"passw(?:or)?d|passphrase|pwd|contrase(?:ñ|n)a|(?<=[_-])pass|api[_-]?key|access[_-]?key|"
        r"secret[_-]?(?:access[_-]?)?key|private[_-]?key|auth[_-]?token|access[_-]?token|client[_-]?secret")
SAID = r"token|secret|secreto|authorization|autorización|clave|key|llave|pin"
VALUE = r"(?:(?P<quote>[\"'])(?P<quoted>(?:(?!(?P=quote))[^\\\n]|\\.){1,256})(?P=quote)|(?P<bare>[^\s&\"'<>]{4,256}))"
# before the word others of the same name (DB_, PG), behind it a few letters (_PROD, 2); `of the wifi` before `is`
NAMED = re.compile(
    rf"(?<![\w-])(?P<name>(?:[\w-]{{0,40}}?(?P<sure>{SURE})|(?:[\w-]{{0,40}}?[_-])??(?:{SAID}))"
    r"(?:[_-][A-Za-z0-9]{1,20}|\d{1,3})?[\"'\]]{0,2}(?P<sign>\s{0,3}(?:=>|:=|={1,3}|:)\s{0,3}|"
    r"(?:\s(?:for|of|to|del?)(?:\s(?:the|la|el|los|las))?\s[\w-]{1,20})?\s(?:is|was|es|era)\s))"
    rf"{VALUE}", re.IGNORECASE)
DRAWN = re.compile(r"\d|[a-zñáéíóú][A-ZÑÁÉÍÓÚ]")
REFERENCE = re.compile(r"[\w.]*[(\[]|\$|\{\{|\*{3}|%\w|…|\.\.\.")


def secrets_out(text: str) -> str:
    """The text with placeholders for keys, passwords and API keys alone: what no log of ours may hold."""
    text = KEY.sub("<KEY>", text)
    text = CURL.sub(r"\1<USER>", USER.sub("<USER>@", text))
    text = BEARER.sub(r"\1<TOKEN>", HEADER.sub(r"\1<TOKEN>", text))
    return NAMED.sub(_value, TOKEN.sub("<TOKEN>", text))


def _value(found: re.Match) -> str:
    """A named value: replaced if its name is sure, or if it stands behind `=`, or if it looks drawn."""
    bare, sign = found["bare"], found["sign"].split()[-1]
    value = found["quoted"] or bare.rstrip(".,;:!?)]}")
    if len(value) < 3 or value.startswith("<") or REFERENCE.match(value):
        return found[0]
    told = sign in ("is", "was", "es", "era")
    if not ((found["sure"] and not told) or "=" in sign or DRAWN.search(value)):
        return found[0]
    quote = found["quote"] or ""
    return f"{found['name']}{quote}<PASSWORD>{quote}{bare[len(value):] if bare else ''}"
