"""What the server filters of a conversation: what comes in, every turn of it, and what goes out, as it is written.

    input    refuse: 400, code `content_filter`, naming kinds and turns      mask: the model reads <EMAIL>
    output   refuse: the answer ends before it, finish_reason `content_filter`     mask: the reader gets <EMAIL>

A text may be split over turns: besides each turn alone, the turns of each role and all turns are looked at as if they
were one text, joined without a blank and with one. An answer is looked at as the continuation of the turns before it.
An e-mail address that is whole in a turn is not made longer by the next one: it does not swallow the `Thanks` there.
An answer is filtered piece by piece (ajuste/rows/filters/stream.py); whole and streamed answers are the same text.

What was caught stands in no error, no log and not in what `--log-requests` keeps: of a refused request nothing is kept,
of a masked one its masked text. `counts` says how often each kind was caught. What is looked for says policy.yaml,
section `filters` (ajuste/rows/filters/config.py); which kinds there are, docs/filters.md.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Sequence

from ajuste.rows.filters.config import FilterConfig
from ajuste.rows.filters.filters import Filter, made
from ajuste.rows.filters.findings import ENDLESS, Finding, masked
from ajuste.rows.filters.stream import Stream
from ajuste.serving.errors import Refusal

Messages = list[dict[str, str]]
Prompt = str | Messages
JOINS = ("", " ")


class Guard:
    """The filters of one server. For any thread."""

    def __init__(self, config: FilterConfig) -> None:
        """Raises UsageError for a kind or region that is not known, or phrases that are not to be had."""
        phrases = config.phrase_list()
        self._input, self._output = config.input, config.output
        self._asked = made(config.input.kinds(), config.regions, phrases)
        self._answered = made(config.output.kinds(), config.regions, phrases)
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def asked(self, prompts: list[Prompt]) -> list[Prompt]:
        """The prompts, or conversations, as the model may read them. Raises Refusal, which names kinds and turns."""
        return [self._one(prompt) for prompt in prompts] if self._input.kinds() else prompts

    def answer(self, prompt: Prompt) -> Stream | None:
        """What the answer to it has to pass; None if nothing is looked for in answers."""
        if not self._output.kinds():
            return None
        before = [prompt] if isinstance(prompt, str) else [*said_before(prompt)]
        return Stream(self._answered, self._output.refuse, before, self._count)

    def counts(self) -> dict[str, int]:
        """How often each kind was caught since the start, such as `input.email`."""
        with self._lock:
            return dict(sorted(self._counts.items()))

    def _one(self, prompt: Prompt) -> Prompt:
        texts = [prompt] if isinstance(prompt, str) else [turn["content"] for turn in prompt]
        roles = ["prompt"] if isinstance(prompt, str) else [turn["role"] for turn in prompt]
        found = findings(self._asked, texts, roles)
        self._count("input", (one.kind for some in found for one in some))
        refused = {i: {one.kind for one in some if one.kind in self._input.refuse} for i, some in enumerate(found)}
        if kinds := sorted(set().union(*refused.values())):
            param, where = "prompt", ""
            if not isinstance(prompt, str):
                param = "messages"
                where = f" in turn {', '.join(str(i + 1) for i, some in refused.items() if some)} of the conversation"
            raise Refusal(400, f"this server takes no text with {', '.join(kinds)}, which was found{where}: "
                               "leave it out", param, "content_filter")
        clean = [masked(text, some) for text, some in zip(texts, found, strict=True)]
        if isinstance(prompt, str):
            return clean[0]
        return [{**turn, "content": text} for turn, text in zip(prompt, clean, strict=True)]

    def _count(self, where: str, kinds: Iterable[str]) -> None:
        with self._lock:
            self._counts.update(f"{where}.{kind}" for kind in kinds)


def findings(filter: Filter, texts: Sequence[str], roles: Sequence[str]) -> list[list[Finding]]:
    """What is found in each turn: by itself, and as a part of what is found over several turns."""
    alone = [filter.find(text) for text in texts]
    found: list[set[Finding]] = [set(some) for some in alone]
    groups = [[i for i, role in enumerate(roles) if role == one] for one in dict.fromkeys(roles)]
    for group in {tuple(some) for some in [*groups, range(len(texts))] if len(some) > 1}:
        for join in JOINS:
            for parts in _over(filter, [texts[i] for i in group], join):
                if not any(one.kind in ENDLESS and other.kind == one.kind and other.start < one.end
                           and one.start < other.end for i, one in parts for other in alone[group[i]]):  # fmt: skip
                    for i, one in parts:
                        found[group[i]].add(one)
    return [sorted(some, key=lambda one: one[1:]) for some in found]


def _over(filter: Filter, texts: Sequence[str], join: str) -> Iterable[list[tuple[int, Finding]]]:
    """Of each finding in the joined texts that is not within one of them, its parts: (turn, what stands in it)."""
    starts = [0]
    for text in texts:
        starts.append(starts[-1] + len(text) + len(join))
    for one in filter.find(join.join(texts)):
        parts = []
        for i, text in enumerate(texts):
            start, end = max(one.start - starts[i], 0), min(one.end - starts[i], len(text))
            if start < end:
                parts.append((i, Finding(one.kind, start, end)))
        if len(parts) > 1:
            yield parts


def said_before(messages: Messages) -> Iterable[str]:
    """The turns that an answer continues, as one text: the assistant's own and all, joined without and with a blank."""
    own = [turn["content"] for turn in messages if turn["role"] == "assistant"]
    for turns in (own, [turn["content"] for turn in messages]):
        for join in JOINS:
            if turns:
                yield join.join([*turns, ""])
