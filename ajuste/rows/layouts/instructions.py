"""The layouts that instruction data comes in, each turned into one typed row of messages.

    alpaca             instruction, input (optional), output              system and history, where there are any
    dolly              instruction, context (optional), response          category
    flan               inputs, targets
    prompt_completion  prompt, completion: texts, or lists of {role, content}
    question_answer    question, context (optional), answer
    messages           messages: [{role: system|user|assistant, content}]
    sharegpt           conversations: [{from: system|human|gpt, value}]   system
    tagged             text: <instruction>...</instruction><response>...</response>
    text               text: general text, no instruction; one message of role "text"
    templates          a labelled row and phrasings of it (FLAN): "Is this review good? {text}" -> "{label}"

Any layout may have a column `category` and one `source`. `input` and `context` follow the instruction after a blank
line. Which of a file's templates a row gets is sha256 of the row, so it is the same one in every run and every order.
An answer of `weight` 0, or `train` false, is a message with weight 0: it is read, and not learnt.

What FLAN does otherwise: it draws several templates a row at random. Nothing here judges content: a row that cannot
be brought into messages says why in `problem`, all else is for the checks.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field

from ajuste.rows.layouts import meant
from ajuste.rows.layouts.meant import unpaired
from ajuste.rows.layouts.turns import Message, Unfit, listed, messages_of, name_of, text_of
from ajuste.rows.read.as_json import as_json
from ajuste.rows.read.records import Record
from ajuste.rows.read.values import looked_up, missing, named

LAYOUTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # needed columns, optional ones; first match wins
    "messages": (("messages",), ()),
    "sharegpt": (("conversations",), ("system",)),
    "alpaca": (("instruction", "output"), ("input", "system", "history")),
    "dolly": (("instruction", "response"), ("context",)),
    "flan": (("inputs", "targets"), ()),
    "prompt_completion": (("prompt", "completion"), ()),
    "question_answer": (("question", "answer"), ("context",)),
    "tagged": (("text",), ()),
    "text": (("text",), ()),
}
ANY = ("category", "source")  # optional in every layout
TAGGED = re.compile(r"\s*<instruction>(.*)</instruction>\s*<response>(.*)</response>\s*", re.DOTALL)
TAGS = ("<instruction>", "</instruction>", "<response>", "</response>")
FIELD = re.compile(r"\{(\w+)\}")


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
        row.category, row.source = name_of(values, "category") or "", name_of(values, "source")
        if layout == "templates":
            _from_template(row, values, templates or [], label_names or {})
        else:
            used = {columns.get(key, key) for key in values}
            meant.check_columns(record.values, used)
            if layout == "prompt_completion" and unpaired([record.values]) and "label" not in used:
                raise Unfit("column `label` says whether the completion is a good one: unpaired preferences")
            _from_columns(row, layout, values)
    except Unfit as problem:
        row.problem, row.raw, row.messages = str(problem), as_json(record.values), []
    return row


def _from_columns(row: Row, layout: str, values: dict) -> None:
    if layout in ("messages", "sharegpt"):
        column, speaker = ("messages", "role") if layout == "messages" else ("conversations", "from")
        if values[column] is None:
            raise Unfit(f"the row has no {column}")
        row.messages = messages_of(listed(values[column]), column, speaker, weighed=True)
    elif layout == "text":
        row.messages = [{"role": "text", "content": text_of(values, "text")}]
    elif layout == "tagged":
        text = text_of(values, "text")
        match = TAGGED.fullmatch(text)
        if not match:
            absent = [tag for tag in TAGS if tag not in text]
            raise Unfit(f"the text has no {absent[0]}" if absent else "the text has something outside its tags")
        row.messages = _pair(*match.groups())
    elif layout == "prompt_completion" and all(map(_are_turns, (values["prompt"], values["completion"]))):
        row.messages = [turn for part in LAYOUTS[layout][0]
                        for turn in messages_of(listed(values[part]), part, weighed=True)]  # fmt: skip
    else:
        asked, answer = LAYOUTS[layout][0]
        row.instruction = text_of(values, asked)
        more = text_of(values, {"alpaca": "input", "dolly": "context", "question_answer": "context"}.get(layout, ""))
        row.messages = _pair("\n\n".join(part for part in (row.instruction, more) if part.strip()),
                             text_of(values, answer))  # fmt: skip
    learnt = [turn.get("weight", 1) for turn in row.messages if turn["role"] == "assistant"]
    if learnt and not any(learnt):
        raise Unfit("no answer of the row is learnt: the weight of each is 0")
    row.messages = _history(values) + row.messages
    system = text_of(values, "system")
    if system.strip():
        row.messages.insert(0, {"role": "system", "content": system})


def _are_turns(value: object) -> bool:
    """Whether a prompt or a completion is a list of turns; a text may itself be the JSON of another list."""
    found = listed(value)
    return isinstance(found, list) and bool(found) and all(isinstance(turn, dict) and "role" in turn for turn in found)


def _history(values: dict) -> list[Message]:
    """The turns before the question: pairs of what was asked and what was answered."""
    turns = listed(values.get("history"))
    if meant.neutral("history", turns):
        return []
    if not isinstance(turns, list) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(said, str) for said in pair)
        for pair in turns
    ):
        raise Unfit("the history is no list of [instruction, response]")
    return [turn for pair in turns for turn in _pair(*pair)]


def _from_template(row: Row, values: dict, templates: list[dict], label_names: dict[str, str]) -> None:
    filled = {}
    for name in template_fields(templates):
        value = values[name]
        value = value[0] if isinstance(value, list) and value else value  # of several right answers the first
        said = str(value) if isinstance(value, str | bool) else None if missing(value) else named(value)
        if said is None or not said.strip():
            raise Unfit(f"the templates need `{name}`, and the row has none")
        filled[name] = said.strip()
    if "label" in filled and label_names:
        name = looked_up(label_names, filled["label"])
        if name not in label_names.values():
            raise Unfit(f"label `{filled['label'][:60]}` is not among label_names")
        filled["label"] = name
    digest = hashlib.sha256(json.dumps(filled, sort_keys=True).encode("ascii")).digest()
    chosen = templates[int.from_bytes(digest[:8], "big") % len(templates)]
    row.messages = _pair(*(FIELD.sub(lambda m: filled[m[1]], chosen[part]) for part in ("prompt", "response")))
    asked = {name for template in templates for name in FIELD.findall(template["prompt"])}
    row.split = "\n".join(filled[name] for name in filled if name in asked)  # the same under every phrasing


def _pair(instruction: str, response: str) -> list[Message]:
    return [{"role": "user", "content": instruction}, {"role": "assistant", "content": response}]
