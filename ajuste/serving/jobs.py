"""What one row of a generation is asked, and what its asker is told: Started, pieces of text, Finished, or an error."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ajuste.rows.filters.stream import Stream
from ajuste.serving.loading import Served


class BadRequest(ValueError):
    """A request that cannot be answered: the message says why, `param` which field, `code` as OpenAI names it."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.code = param, code


@dataclass(frozen=True)
class Started:
    """The request has joined the batch of this model."""

    served: Served
    prompt_tokens: int


@dataclass(frozen=True)
class Finished:
    """The answer is whole. `reason` is "stop" (end of turn, stop string), "length" (a limit) or "content_filter"."""

    reason: str
    completion_tokens: int          # all that were generated, an end-of-turn token included


@dataclass(eq=False)
class Job:
    """What one row is asked. `deliver` gets Started, pieces of text, Finished; or an exception, which is the last.

    With `top` a number, each token but the end of turn is delivered too, as a Token with so many alternatives.
    """

    reference: str                              # "" is the default
    prompt: str | list[dict[str, str]]          # a text to continue, or messages
    deliver: Callable[[Any], None]
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top: int | None = None
    guard: Stream | None = None                 # what the text has to pass
    cancelled: bool = False                     # set by any thread: the row leaves at the next step
    submitted: float = field(default_factory=time.monotonic)
