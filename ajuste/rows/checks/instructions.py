"""What is measured on a row of messages, and the checks on it as Great Expectations' own expectations.

    repeats   how often the same sentence or line of three words and more stands in a response, or, if that is more, how
              often a run of up to 20 words follows on itself (counted from 12 words in all)

What is looked for in every turn, of whatever kind of set, is in turns.py beside this file.
"""

import re
from collections import Counter

import numpy as np

from ajuste.rows.checks.expectations import MOJIBAKE, gxe
from ajuste.rows.checks.turns import TEMPLATE
from ajuste.rows.clean import damage, visible
from ajuste.rows.split import split_text

LOOP_WORDS, LOOP_LEAST = 20, 12
SENTENCE = re.compile(r"[.!?]+\s|\n+")
ROLES = r"^(?:text|(?:system )?user assistant(?: user assistant)*)$"


def measure(messages: list[dict], instruction: str | None) -> dict:
    """The columns that row_checks judges, of cleaned messages. None: there is nothing of the kind to judge."""
    users, answers, texts = (
        [message["content"] for message in messages if message["role"] == role]
        for role in ("user", "assistant", "text")
    )
    contents = [message["content"] for message in messages]
    pairs = zip(messages, messages[1:], strict=False)
    found = next((match for content in contents if (match := TEMPLATE.search(content))), None)
    asked = [visible(text) for text in users] + ([visible(instruction)] if instruction is not None else [])
    return {
        "damage": sum(damage(content) for content in contents),
        "roles": " ".join(message["role"] for message in messages),
        "instruction_chars": min(asked, default=None),
        "response_chars": min(map(visible, answers), default=None),
        "text_chars": min(map(visible, texts), default=None),
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
