"""The layouts that preference data comes in, each turned into one comparison: a prompt and its responses, best first.

    pairs           prompt, chosen, rejected: texts
    transcripts     chosen, rejected: whole dialogues "\\n\\nHuman: ...\\n\\nAssistant: ...", the form of hh-rlhf; with
                    a column `prompt` that ends before the last answer, the form of its derivatives
    conversational  chosen, rejected: lists of {role, content}, with the prompt inside, or beside it in `prompt`
    sharegpt        conversations: [{from, value}], chosen and rejected: {from, value}
    rankings        prompt, responses: K >= 2 of them, best first; or in any order with `ranks` (1 is best) or `ratings`
                    (of each response a number, or a list with one a rater)
    ratings         text, ratings: one text and what several raters gave it. All texts answer one prompt, which set.yaml
                    names; comparisons are formed of them (ajuste/rows/layouts/rated_pairs.py)
    raters          id, ratings: what the raters gave to the texts of another file, which has id and text. No rows
                    itself

Pairs may have `chosen_rating` and `rejected_rating`, or `agreement`, the share of raters who preferred the chosen one.
Any layout may have a column `source`. A value that is a list may also be its JSON in a text column.

A row that cannot be brought into a comparison has a `fault`: the name of a check and what is wrong. What the prompt and
the responses say is for the checks.
"""

import math
import re
from dataclasses import dataclass, field

from ajuste.learning.statistics.agreement import agreement
from ajuste.rows.layouts import meant
from ajuste.rows.layouts.turns import Message, Unfit, listed, messages_of, name_of, text_of, transcript_of
from ajuste.rows.read.as_json import as_json
from ajuste.rows.read.records import Record

PAIR = ("chosen_rating", "rejected_rating", "agreement")
LAYOUTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # needed columns, optional ones
    "sharegpt": (("conversations", "chosen", "rejected"), ("system", *PAIR)),
    "rankings": (("prompt", "responses"), ("ranks", "ratings", "system")),
    "conversational": (("chosen", "rejected"), ("prompt", "system", *PAIR)),
    "transcripts": (("chosen", "rejected"), ("prompt", "system", *PAIR)),
    "pairs": (("prompt", "chosen", "rejected"), ("system", *PAIR)),
    "ratings": (("text", "ratings"), ("id",)),
    "raters": (("id", "ratings"), ()),
}
FAULTS = ("unreadable_row", "not_a_transcript", "different_prompts", "bad_ratings", "tied_ranks", "order_contradicted")
LARGEST = 1e100  # a rating
SEPARATOR = re.compile(r"[\s,;|]+")


@dataclass(slots=True)
class Comparison:
    """One row. `fault`: (check, what is wrong), else None; then `raw` is the row as it stands in the file."""

    line: int
    prompt: list[Message] = field(default_factory=list)
    responses: list[str] = field(default_factory=list)  # best first; of layout `ratings` the one text
    roles: str = ""  # of the prompt and of each response
    ratings: list[float] | None = None  # mean of each response
    agreement: float | None = None
    position: int | None = None  # where the best one stood in the row, if the row says
    raters: list[float] | None = None  # of layout `ratings`
    source: str | None = None
    raw: str = ""
    fault: tuple[str, str] | None = None

    def about(self) -> str:
        """What decides the split: the first user turn, of a rated text the text."""
        if self.raters is not None:
            return self.responses[0]
        return next((turn["content"] for turn in self.prompt if turn["role"] == "user"), "")


class _Fault(Unfit):
    """What else may be wrong with a row than its form: the name of a check, and words."""

    def __init__(self, check: str, words: str) -> None:
        super().__init__(words)
        self.check = check


def columns_known(layout: str) -> list[str]:
    """The names that a layout gives to columns, needed and optional."""
    return [*LAYOUTS[layout][0], *LAYOUTS[layout][1], "source"]


def needs_of_layouts() -> str:
    """One line for messages: what each layout needs."""
    return ", ".join(f"{layout} ({', '.join(needed)})" for layout, (needed, _) in LAYOUTS.items()
                     if layout != "raters")  # fmt: skip


def recognise(found: list[str], columns: dict[str, str], first: list[Record]) -> str | None:
    """The layout of a file with these columns and first rows, or None."""
    names = {key: columns.get(key, key) for layout in LAYOUTS for key in columns_known(layout)}
    fits = [layout for layout, (needed, _) in LAYOUTS.items()
            if layout != "raters" and all(names[key] in found for key in needed)]  # fmt: skip
    if not fits or fits[0] in ("sharegpt", "rankings", "ratings"):
        return fits[0] if fits else None
    values = [record.values for record in first if record.values]
    chosen = [row.get(names["chosen"]) for row in values]
    if 2 * sum(isinstance(_turns(value), list) for value in chosen) > len(chosen):
        return "conversational"
    begins = [row.get(names["prompt"]) if names["prompt"] in found else row.get(names["chosen"]) for row in values]
    if 2 * sum(isinstance(text, str) and text.lstrip().startswith("Human:") for text in begins) > len(begins):
        return "transcripts"
    return "pairs" if "pairs" in fits else None


def to_comparison(record: Record, layout: str, columns: dict[str, str], prompt: str | None = None) -> Comparison:
    """The record as a Comparison. prompt: what all texts of layout `ratings` answer."""
    row = Comparison(record.line)
    if record.problem:
        row.raw, row.fault = record.text, ("unreadable_row", record.problem)
        return row
    values = {key: record.values.get(columns.get(key, key)) for key in columns_known(layout)}
    try:
        row.source = name_of(values, "source")
        meant.check_columns(record.values, {columns.get(key, key) for key in values})
        _FILL[layout](row, values, prompt or "")
        system = text_of(values, "system") if "system" in values else ""
        if system.strip():
            row.prompt.insert(0, {"role": "system", "content": system})
            row.roles = f"system {row.roles}"
    except Unfit as wrong:
        row.fault = (wrong.check if isinstance(wrong, _Fault) else "unreadable_row", str(wrong))
        row.raw = as_json(record.values)
        row.prompt, row.responses = [], []
    return row


def _pairs(row: Comparison, values: dict, _: str) -> None:
    asked = _asked(values) or [{"role": "user", "content": ""}]
    _set_pair(row, asked, *({"role": "assistant", "content": text_of(values, side)} for side in ("chosen", "rejected")))
    _judgement(row, values)


def _transcripts(row: Comparison, values: dict, _: str) -> None:
    sides = [_transcript(text_of(values, "prompt") + text_of(values, side), side) for side in ("chosen", "rejected")]
    _set_sides(row, *sides)
    _judgement(row, values)


def _conversational(row: Comparison, values: dict, _: str) -> None:
    asked = _asked(values)
    sides = []
    for side in ("chosen", "rejected"):
        turns = _messages(_turns(values[side]), side)
        if asked is not None and len(turns) <= 1:
            turns = [*asked, *(turns or [{"role": "assistant", "content": ""}])]
        elif asked is not None and _normal(turns[:-1])[-len(asked) :] != _normal(asked):
            raise _Fault("different_prompts", f"the {side} messages do not begin with the prompt")
        sides.append(turns)
    _set_sides(row, *sides)
    _judgement(row, values)


def _sharegpt(row: Comparison, values: dict, _: str) -> None:
    asked = _messages(_turns(values["conversations"]), "conversations", "from")
    sides = []
    for side in ("chosen", "rejected"):
        value = _turns(values[side])
        value = {"from": "gpt", "value": value} if isinstance(value, str) or value is None else value
        (turn,) = _messages([value], side, "from")
        sides.append(turn)
    _set_pair(row, asked, *sides)
    _judgement(row, values)


def _rankings(row: Comparison, values: dict, _: str) -> None:
    row.prompt = _asked(values) or []
    responses = listed(values["responses"])
    if not isinstance(responses, list) or not all(isinstance(text, str) for text in responses):
        raise Unfit("the responses are no list of texts")
    row.roles = " ".join([*(turn["role"] for turn in row.prompt), "assistant"])
    count = len(responses)
    ranks, ratings = (listed(values[key]) for key in ("ranks", "ratings"))
    raters = None
    if ratings is not None:
        if not isinstance(ratings, list) or len(ratings) != count:
            raise _Fault("bad_ratings", f"there are {count} responses, and the ratings are no list of as many")
        raters = [numbers(listed(value) if isinstance(value, str) else value) for value in ratings]
        row.ratings = [sum(given) / len(given) for given in raters]
    key = row.ratings and [-value for value in row.ratings]
    if ranks is not None:
        if not isinstance(ranks, list) or len(ranks) != count:
            raise _Fault("bad_ratings", f"there are {count} responses, and the ranks are no list of as many")
        key = [numbers(rank)[0] for rank in ranks]
    order = list(range(count))
    if key:
        if len(set(key)) < count:
            raise _Fault("tied_ranks", "two responses have the same rank: which one is better is not said")
        order.sort(key=lambda i: key[i])
        row.position = order[0]
    row.responses = [responses[i] for i in order]
    if row.ratings:
        row.ratings, raters = [row.ratings[i] for i in order], [raters[i] for i in order]
        if row.ratings != sorted(row.ratings, reverse=True):
            raise _Fault("order_contradicted", f"best first, the ratings are {row.ratings}")
        if count == 2 and len(raters[0]) + len(raters[1]) > 2:
            row.agreement = agreement(*raters)


def _ratings(row: Comparison, values: dict, prompt: str) -> None:
    row.prompt = [{"role": "user", "content": prompt}]
    row.responses, row.roles = [text_of(values, "text")], "user assistant"
    row.raters = numbers(listed(values["ratings"]))
    row.ratings = [math.fsum(row.raters) / len(row.raters)]


_FILL = {"pairs": _pairs, "transcripts": _transcripts, "conversational": _conversational, "sharegpt": _sharegpt,
         "rankings": _rankings, "ratings": _ratings}  # fmt: skip


def numbers(value: object) -> list[float]:
    """A number, a list of numbers, or a text that lists them, as finite numbers. Raises a fault `bad_ratings`."""
    if isinstance(value, str):
        value = [part for part in SEPARATOR.split(value.strip().strip("[]()")) if part]
    found = value if isinstance(value, list) else [] if value is None else [value]
    if not found:
        raise _Fault("bad_ratings", "there are no ratings")
    result = []
    for part in found:
        try:
            if isinstance(part, bool) or part is None:
                raise ValueError
            result.append(float(part))
        except (TypeError, ValueError):
            raise _Fault("bad_ratings", f"the rating `{str(part)[:40]}` is no number") from None
        except OverflowError:  # a whole number of hundreds of digits
            result.append(math.inf)
    if not all(abs(number) < LARGEST for number in result):  # of NaN that is false too; sums of larger ones overflow
        raise _Fault("bad_ratings", "a rating is not finite, or too large for one")
    return result


def _asked(values: dict) -> list[Message] | None:
    """The prompt as messages: a text is the user's; None if there is none."""
    prompt = _turns(values["prompt"])
    if isinstance(prompt, list):
        return _messages(prompt, "prompt")
    return None if prompt is None else [{"role": "user", "content": text_of(values, "prompt")}]


def _judgement(row: Comparison, values: dict) -> None:
    """The ratings or the agreement of a pair, where the row has them."""
    given = [values[key] for key in ("chosen_rating", "rejected_rating")]
    given = [None if isinstance(value, str) and not value.strip() else value for value in given]
    if any(value is not None for value in given):
        raters = [numbers(listed(value)) for value in given]
        row.ratings = [sum(part) / len(part) for part in raters]
        if row.ratings[0] < row.ratings[1]:
            words = f"the chosen one has {row.ratings[0]:g}, the rejected {row.ratings[1]:g}"
            raise _Fault("order_contradicted", words)
        if len(raters[0]) + len(raters[1]) > 2:
            row.agreement = agreement(*raters)
    share = values["agreement"]
    if share is not None and not (isinstance(share, str) and not share.strip()):
        row.agreement = numbers(share)[0]
        if not 0 <= row.agreement <= 1:
            raise _Fault("bad_ratings", f"the agreement is {row.agreement:g}: it is a share, from 0 to 1")


def _set_pair(row: Comparison, prompt: list[Message], chosen: Message, rejected: Message) -> None:
    row.prompt, row.responses = prompt, [chosen["content"], rejected["content"]]
    row.roles = " ".join(turn["role"] for turn in [*prompt, chosen])
    if chosen["role"] != rejected["role"]:
        row.roles += f" or {rejected['role']}"


def _set_sides(row: Comparison, chosen: list[Message], rejected: list[Message]) -> None:
    """A pair of whole dialogues: they differ in the last turn alone."""
    if not chosen or not rejected:  # a side is missing: what there is of the other one
        turns = chosen or rejected or [{"role": "assistant", "content": ""}]
        chosen, rejected = (side or [*turns[:-1], {**turns[-1], "content": ""}] for side in (chosen, rejected))
    if _normal(chosen[:-1]) != _normal(rejected[:-1]):
        words = f"the chosen dialogue has {len(chosen)} turns, the rejected {len(rejected)}"
        same = "they differ before the last turn"
        raise _Fault("different_prompts", words if len(chosen) != len(rejected) else same)
    _set_pair(row, chosen[:-1], chosen[-1], rejected[-1])


def _normal(turns: list[Message]) -> list[tuple[str, str]]:
    return [(turn["role"], " ".join(turn["content"].split())) for turn in turns]


def _transcript(text: str, side: str) -> list[Message]:
    turns = transcript_of(text)
    if turns is None:
        raise _Fault("not_a_transcript", f"the {side} text does not begin with `Human:`")
    return turns


def _turns(value: object) -> object:
    """As listed, but only what holds messages: a prompt or a response may itself be the JSON of something else."""
    found = listed(value)
    if isinstance(value, str) and not isinstance(found, str):
        parts = found if isinstance(found, list) else [found]
        if not parts or not all(isinstance(part, dict) and part.keys() & {"role", "from"} for part in parts):
            return value
    return found


def _messages(turns: object, what: str, speaker: str = "role") -> list[Message]:
    """As messages_of; a side or a prompt that is not there has no turns."""
    return [] if turns is None else messages_of(turns, what, speaker)
