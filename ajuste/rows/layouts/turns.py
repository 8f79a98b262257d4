"""What the layouts of instructions and of preferences share: texts, names and turns out of the values of a row.

    turns        [{role, content}], or ShareGPT's [{from, value}], whose human and gpt become user and assistant;
                 a role in any case; the list itself, or its JSON in a text column
    transcript   "\\n\\nHuman: ...\\n\\nAssistant: ...", the form of hh-rlhf

A value of another form raises Unfit, which says what is wrong with the row.
"""

import json
import re

from ajuste.rows.layouts import meant
from ajuste.rows.layouts.unfit import Unfit
from ajuste.rows.read.values import missing, named

SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}
ROLES = ("system", "user", "assistant")
KEYS = {"role": ("role", "content"), "from": ("from", "value")}  # of a turn: who speaks, and what is said

SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}

Message = dict[str, str]  # role, content; of an answer that is not learnt also weight 0


def text_of(values: dict, key: str) -> str:
    """A value that must be text; none counts as empty."""
    value = values.get(key)
    if missing(value):
        return ""
    if not isinstance(value, str):
        raise Unfit(f"the {key} is of type {type(value).__name__}, not text")
    return value


def name_of(values: dict, key: str) -> str | None:
    """A value that names a category or source: text, or a number."""
    value = values.get(key)
    return named(value) or text_of(values, key).strip() or None


def listed(value: object) -> object:
    """A list or an object that stands in a text column as JSON, else the value itself."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def messages_of(turns: object, what: str, speaker: str = "role", weighed: bool = False) -> list[Message]:
    """A list of turns as messages. what: its name in complaints. speaker: the key of who speaks, `role` or `from`.

    Roles that nobody knows stay as they are: they are for the checks. No content counts as empty. An answer of weight 0
    keeps it if answers are weighed, else it is Unfit; the weight of a turn that is no answer is moot.
    """
    if isinstance(turns, str):
        raise Unfit(f"the {what} are text, not a list of messages, nor the JSON of one")
    if not isinstance(turns, list):
        raise Unfit(f"the {what} are of type {type(turns).__name__}, not a list of messages")
    role_key, content_key = KEYS[speaker]
    messages = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or role_key not in turn or content_key not in turn:
            raise Unfit(f"message {number} of the {what} has no `{role_key}` and `{content_key}`")
        role, content = turn[role_key], "" if missing(turn[content_key]) else turn[content_key]
        if not isinstance(role, str) or not isinstance(content, str):
            wrong = role_key if not isinstance(role, str) else content_key
            kind = type(turn[wrong]).__name__
            raise Unfit(f"the `{wrong}` of message {number} of the {what} is of type {kind}, not text")
        role = role_of(role, speaker)
        meant.check_turn(turn, number, what)
        messages.append({"role": role, "content": content})
        if role == "assistant" and not meant.is_learnt(turn, number, what):
            if not weighed:
                raise Unfit(f"message {number} of the {what} has weight 0, which its layout does not use")
            messages[-1]["weight"] = 0
    return messages


def role_of(name: str, speaker: str) -> str:
    """The role that a name stands for, in any case; a name that nobody knows stays as it is."""
    plain = name.strip().lower()
    plain = SHAREGPT_ROLES.get(plain, plain) if speaker == "from" else plain
    return plain if plain in ROLES else name


def transcript_of(text: str) -> list[Message] | None:
    """The turns of a transcript; none of an empty text, and None for a text that does not begin with a speaker."""
    if not text.strip():
        return []
    before, *parts = SPEAKER.split(text.replace("\r\n", "\n"))
    if before.strip() or not parts:
        return None
    names, contents = parts[::2], parts[1::2]
    return [{"role": SPEAKERS[name], "content": said.strip()} for name, said in zip(names, contents, strict=True)]
