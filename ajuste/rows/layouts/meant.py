"""Columns and keys of a turn that change what a row means: used, or their row goes to quarantine; never dropped.

    history                          turns before the question: used by layout alpaca
    input                            belongs to the prompt: used by layout alpaca
    tools, functions, tool_calls, function_call     the model may call, or calls, what no template here writes
    reasoning_content                what the model thinks before it answers
    weight, train                    whether an answer is learnt: used by layouts messages and sharegpt, 0 or false is a
                                     turn that is read and not learnt; of a row or a comparison used by none
    label                            beside a completion: whether it is a good one (unpaired preferences, KTO)

A neutral value (null, an empty text or list, weight 1, train true) changes nothing. Whatever else a layout does not use
is dropped, and `data add` names it.
"""

from ajuste.rows.layouts.unfit import Unfit
from ajuste.rows.read.values import missing

COLUMNS = ("history", "input", "tools", "functions", "tool_calls", "function_call", "reasoning_content", "weight",
           "train")  # fmt: skip
TURN = ("tool_calls", "function_call", "reasoning_content")
TRUE = {"weight": (1, "1", "1.0"), "train": (True, 1, "true", "True", "1")}
VERDICTS = ("true", "false", "0", "1", "0.0", "1.0")
VERDICT_WORDS = ("-1", "-1.0", "+1", "good", "bad", "desirable", "undesirable", "chosen", "rejected", "accepted",
                 "preferred", "dispreferred", "like", "dislike", "thumbs_up", "thumbs_down")  # fmt: skip
FALSE = {"weight": (0, "0", "0.0"), "train": (False, 0, "false", "False", "0")}


def check_columns(values: dict[str, object], used: set[str]) -> None:
    """Raise Unfit for a column that changes the meaning of the row and is not among the used ones."""
    for name in COLUMNS:
        if name in values and name not in used and not neutral(name, values[name]):
            raise Unfit(f"column `{name}` changes what the row means, and its layout does not use it")


def check_turn(turn: dict[str, object], number: int, what: str) -> None:
    """Raise Unfit for a key of a turn that changes its meaning and that no layout uses."""
    for name in TURN:
        if name in turn and not neutral(name, turn[name]):
            raise Unfit(f"`{name}` of message {number} of the {what} changes what it means, and is not used")


def is_learnt(turn: dict[str, object], number: int, what: str) -> bool:
    """Whether an answer is learnt, by its `weight` and `train`. Raises Unfit for a value that says neither."""
    learnt = True
    for name in TRUE:
        if name in turn and not neutral(name, turn[name]):
            value = turn[name]
            if not isinstance(value, str | int | float) or value not in FALSE[name]:
                raise Unfit(f"`{name}` of message {number} of the {what} is {str(value)[:40]}: only 0, which is not "
                            "learnt, and 1 are used")  # fmt: skip
            learnt = False
    return learnt


def neutral(name: str, value: object) -> bool:
    """Whether a value says nothing that a row without it would not say."""
    if missing(value) or (isinstance(value, str | list | tuple | dict) and not len(value)):
        return True
    if isinstance(value, str) and (not value.strip() or value.strip() in ("[]", "{}", "null")):
        return True
    return name in TRUE and isinstance(value, str | int | float) and value in TRUE[name]


def unpaired(values: list[dict[str, object]], more: tuple[str, ...] = ()) -> bool:
    """Whether rows with completions have a label that is true or false: unpaired preferences, as KTO learns from.

    more: words that mean the same where all rows of a file have one of them; a single row may be of some class.
    """
    found = [row["label"] for row in values if not missing(row.get("label"))]
    return bool(found) and all(str(value).strip().lower() in (*VERDICTS, *more) for value in found)
