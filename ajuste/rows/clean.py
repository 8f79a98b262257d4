"""Cleaning of one text: what a web page left in it. Only `validate` cleans, and it counts what it changed.

    <br>, <br />           -> a line break
    &amp; &#8217; ...      -> the character (once: what is still an entity afterwards is reported as residue)
    U+0080 to U+009F       -> what Windows-1252 has there, as HTML5 reads them (Latin-1 read in place of cp1252)
    blanks around, CR LF   -> removed, LF

Damage is what no cleaning can bring back: bytes that are no UTF-8, U+FFFD, control characters.
"""

import html
import re

BREAK = re.compile(r"(?i)<br\s*/?\s*>")
ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
C1 = re.compile("[\x80-\x9f]")
DAMAGE = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffd]")
LONE = re.compile("[\ud800-\udfff]")
INVISIBLE = re.compile(
    "[\\s\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e0fff]"
)
KINDS = ("line_breaks", "entities", "windows_1252")


def clean(text: str) -> tuple[str, list[str]]:
    """The cleaned text, and which of KINDS it needed."""
    needed = []
    if BREAK.search(text):
        needed.append("line_breaks")
        text = BREAK.sub("\n", text)
    if "&" in text and ENTITY.search(text):
        unescaped = ENTITY.sub(lambda match: html.unescape(match.group()), text)
        if unescaped != text:
            needed.append("entities")
            text = unescaped
    if not text.isascii() and C1.search(text):
        needed.append("windows_1252")
        text = C1.sub(cp1252, text)
    return text.replace("\r\n", "\n").replace("\r", "\n").strip(), needed


def damage(text: str) -> int:
    """How many characters are damaged beyond cleaning."""
    return len(DAMAGE.findall(text))


def lone(text: str) -> int:
    """How many lone surrogates stand in a text that is not cleaned, such as a label: no file can store one."""
    return 0 if text.isascii() else len(LONE.findall(text))


def visible(text: str) -> int:
    """How many characters of a text can be seen: neither blanks nor zero-width and filling ones."""
    return len(text.strip()) if text.isascii() else len(INVISIBLE.sub("", text))


def cp1252(match: re.Match) -> str:
    """What Windows-1252 has in place of a C1 character; U+FFFD if nothing."""
    return match.group().encode("latin-1").decode("cp1252", errors="replace")
