"""The layouts that instruction data comes in, each turned into one typed row of messages.

    alpaca             instruction, input (optional), output              system, where there is such a column
    dolly              instruction, context (optional), response          category
    flan               inputs, targets
    prompt_completion  prompt, completion
    messages           messages: [{role: system|user|assistant, content}]
    sharegpt           conversations: [{from: system|human|gpt, value}]   system
    tagged             text: <instruction>...</instruction><response>...</response>
    text               text: general text, no instruction; one message of role "text"
    templates          a labelled row and phrasings of it (FLAN): "Is this review good? {text}" -> "{label}"

Any layout may have a column `category` and one `source`. `input` and `context` follow the instruction after a blank
line. Which of a file's templates a row gets is sha256 of the row, so it is the same one in every run and every order.

What FLAN does otherwise: it draws several templates a row at random. Nothing here judges content: a row that cannot
be brought into messages says why in `problem`, all else is for the checks. Private to the tasks and the command line.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field

LAYOUTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # needed columns, optional ones; first match wins
    "messages": (("messages",), ()),
    "sharegpt": (("conversations",), ("system",)),
    "alpaca": (("instruction", "output"), ("input", "system")),
    "dolly": (("instruction", "response"), ("context",)),
    "flan": (("inputs", "targets"), ()),
    "prompt_completion": (("prompt", "completion"), ()),
    "tagged": (("text",), ()),
    "text": (("text",), ()),
}
ANY = ("category", "source")  # optional in every layout
TAGGED = re.compile(r"\s*<instruction>(.*)</instruction>\s*<response>(.*)</response>\s*", re.DOTALL)
TAGS = ("<instruction>", "</instruction>", "<response>", "</response>")
FIELD = re.compile(r"\{(\w+)\}")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}

Message = dict[str, str]  # role, content


@dataclass(slots=True)
class Record:
    """A row as it stands in the file: its columns, or the text of one that cannot be read and why."""

    line: int
    values: dict[str, object] | None = None
    text: str = ""
    problem: str | None = None


@dataclass(slots=True)
class Row:
    """One row as messages. `problem` says why it could not be brought into that form, else it is None."""

    line: int
    messages: list[Message] = field(default_factory=list)
    category: str = ""
    source: str | None = None
    instruction: str | None = None  # what must not be empty, where that is less than the first user turn
    split: str | None = None  # what decides the split, where that is not the first user turn
    raw: str = ""  # the row as it stands in the file, if there is a problem
    problem: str | None = None


def columns_needed(layout: str, columns: dict[str, str], templates: list[dict] | None = None) -> list[str]:
    """The columns that a file must have: what its layout needs, and what `columns` (own -> in file) names."""
    needed = template_fields(templates or []) if layout == "templates" else LAYOUTS[layout][0]
    return list(dict.fromkeys([*(columns.get(key, key) for key in needed), *columns.values()]))


def columns_known(layout: str, templates: list[dict] | None = None) -> list[str]:
    """The names that a layout gives to columns, needed and optional."""
    own = template_fields(templates or []) if layout == "templates" else [*LAYOUTS[layout][0], *LAYOUTS[layout][1]]
    return [*own, *ANY]


def recognise(found: list[str], columns: dict[str, str], tagged: bool) -> str | None:
    """The layout of a file with these columns, or None. `tagged`: its texts hold <instruction>."""
    for layout, (needed, _) in LAYOUTS.items():
        if (layout != "tagged" or tagged) and all(columns.get(key, key) in found for key in needed):
            return layout
    return None


def needs_of_layouts() -> str:
    """One line for messages: what each layout needs."""
    return ", ".join(f"{layout} ({', '.join(needed)})" for layout, (needed, _) in LAYOUTS.items()) + (
        ", templates (the columns that its templates name)"
    )


def template_fields(templates: list[dict]) -> list[str]:
    """The names in braces of all prompts and responses, each once."""
    texts = [template[part] for template in templates for part in ("prompt", "response")]
    return list(dict.fromkeys(name for text in texts for name in FIELD.findall(text)))


def to_row(record: Record, layout: str, columns: dict[str, str], templates: list[dict] | None = None,
           label_names: dict[str, str] | None = None) -> Row:  # fmt: skip
    """The record as a Row. For templates: [{prompt, response}], and `label_names`: value of column `label` -> name."""
    if record.problem:
        return Row(record.line, raw=record.text, problem=record.problem)
    values = {key: record.values.get(columns.get(key, key)) for key in columns_known(layout, templates)}
    row = Row(record.line)
    try:
        row.category, row.source = _label(values, "category") or "", _label(values, "source")
        if layout == "templates":
            _from_template(row, values, templates or [], label_names or {})
        else:
            _from_columns(row, layout, values)
    except _Unfit as problem:
        row.problem, row.raw, row.messages = str(problem), json.dumps(record.values, ensure_ascii=False), []
    return row


class _Unfit(ValueError):
    """The values of a row do not have the form of its layout."""


def _from_columns(row: Row, layout: str, values: dict) -> None:
    if layout in ("messages", "sharegpt"):
        row.messages = _turns(values, layout)
    elif layout == "text":
        row.messages = [{"role": "text", "content": _text(values, "text")}]
    elif layout == "tagged":
        text = _text(values, "text")
        match = TAGGED.fullmatch(text)
        if not match:
            absent = [tag for tag in TAGS if tag not in text]
            raise _Unfit(f"the text has no {absent[0]}" if absent else "the text has something outside its tags")
        row.messages = _pair(*match.groups())
    else:
        asked, answer = LAYOUTS[layout][0]
        row.instruction = _text(values, asked)
        more = _text(values, {"alpaca": "input", "dolly": "context"}.get(layout, ""))
        row.messages = _pair("\n\n".join(part for part in (row.instruction, more) if part.strip()),
                             _text(values, answer))  # fmt: skip
    system = _text(values, "system")
    if system.strip():
        row.messages.insert(0, {"role": "system", "content": system})


def _from_template(row: Row, values: dict, templates: list[dict], label_names: dict[str, str]) -> None:
    filled = {}
    for name in template_fields(templates):
        value = values[name]
        value = value[0] if isinstance(value, list) and value else value  # of several right answers the first
        if not isinstance(value, str | int | float) or not str(value).strip():
            raise _Unfit(f"the templates need `{name}`, and the row has none")
        filled[name] = str(value).strip()
    if "label" in filled and label_names:
        if filled["label"] not in label_names:
            raise _Unfit(f"label `{filled['label'][:60]}` is not among label_names")
        filled["label"] = label_names[filled["label"]]
    digest = hashlib.sha256(json.dumps(filled, sort_keys=True).encode("ascii")).digest()
    chosen = templates[int.from_bytes(digest[:8], "big") % len(templates)]
    row.messages = _pair(*(FIELD.sub(lambda m: filled[m[1]], chosen[part]) for part in ("prompt", "response")))
    asked = {name for template in templates for name in FIELD.findall(template["prompt"])}
    row.split = "\n".join(filled[name] for name in filled if name in asked)  # the same under every phrasing


def _pair(instruction: str, response: str) -> list[Message]:
    return [{"role": "user", "content": instruction}, {"role": "assistant", "content": response}]


def _turns(values: dict, layout: str) -> list[Message]:
    """The turns of a chat; a list, or its JSON in a text column. Roles that nobody knows stay as they are."""
    column, role_key, content_key = (
        ("messages", "role", "content") if layout == "messages" else ("conversations", "from", "value")
    )
    turns = values[column]
    if isinstance(turns, str):
        try:
            turns = json.loads(turns)
        except (ValueError, RecursionError):
            raise _Unfit(f"the {column} are no list, nor the JSON of one") from None
    if turns is None:
        raise _Unfit(f"the row has no {column}")
    if not isinstance(turns, list):
        raise _Unfit(f"the {column} are of type {type(turns).__name__}, not a list")
    messages = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or role_key not in turn or content_key not in turn:
            raise _Unfit(f"message {number} has no `{role_key}` and `{content_key}`")
        role, content = turn[role_key], turn[content_key]
        content = "" if content is None else content
        if not isinstance(role, str) or not isinstance(content, str):
            wrong = role_key if not isinstance(role, str) else content_key
            raise _Unfit(f"the `{wrong}` of message {number} is of type {type(turn[wrong]).__name__}, not text")
        messages.append({"role": SHAREGPT_ROLES.get(role, role) if layout == "sharegpt" else role, "content": content})
    return messages


def _text(values: dict, key: str) -> str:
    """A value that must be text; none counts as empty."""
    value = values.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _Unfit(f"the {key} is of type {type(value).__name__}, not text")
    return value


def _label(values: dict, key: str) -> str | None:
    """A value that names a category or source: text, or a number."""
    value = values.get(key)
    return json.dumps(value) if isinstance(value, int | float) else _text(values, key).strip() or None
