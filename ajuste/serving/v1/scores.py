"""How good is a response? The reward model's scores over HTTP, beside completions and in the same manners.

    POST /v1/score   {"model": "ratings-reward", "input": [{"prompt": "...", "response": "..."}, ...]}

Each of `input` is `prompt` (a text, or messages) and `response`, or `messages` whose last one is the assistant's: it is
what is scored. The tokens are those of the training: the chat template, and the response's end of turn. Each row is
scored at its last token, so no other row of the request changes its score. Scores are on the model's own scale: about
0 with deviation 1 over answers of the model that the reward was trained beside; two scores compare under one prompt.

The answer's form is the one that vLLM gave such a page; `model` is NAME/VERSION, the version that answered.
"""

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, field_validator, model_validator

from ajuste.learning.text import chat
from ajuste.serving.door.documents import errors_of
from ajuste.serving.door.patience import Gone, Texts
from ajuste.serving.generation import MAX_TOKENS, check_length
from ajuste.serving.jobs import BadRequest
from ajuste.serving.loading import Served
from ajuste.serving.v1.completions import Keep
from ajuste.serving.v1.questions import MAX_MESSAGES, Content, Message, Strict

MAX_INPUTS = 256
MAX_REQUEST_TOKENS = 65_536     # of all rows of a request

Conversation = list[dict[str, str]]


class Exchange(Strict):
    """One prompt with the response that is scored."""

    prompt: Content | Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    response: Content | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None

    @model_validator(mode="after")
    def one_form(self) -> "Exchange":
        given = (self.prompt is not None, self.response is not None, self.messages is not None)
        if given not in ((True, True, False), (False, False, True)):
            raise ValueError('give "prompt" and "response", or "messages" that end with the assistant\'s')
        return self

    def conversation(self) -> Conversation:
        """All turns as the chat template takes them, the scored one last."""
        if self.messages is not None:
            return [message.plain() for message in self.messages]
        if isinstance(self.prompt, str):
            before = [{"role": "user", "content": self.prompt}]
        else:
            before = [message.plain() for message in self.prompt]
        return [*before, {"role": "assistant", "content": self.response}]


class ScoreQuestion(Strict):
    """The body of POST /v1/score."""

    model: str = Field("", description="NAME, NAME@ALIAS or NAME/VERSION; the first reward model if absent.")
    input: Annotated[list[Exchange], Field(min_length=1, max_length=MAX_INPUTS)]

    @field_validator("input", mode="before")
    @classmethod
    def one_or_more(cls, given: Any) -> Any:
        return [given] if isinstance(given, dict) else given


class Score(BaseModel):
    """The score of one row."""

    index: int
    object: Literal["score"]
    score: float


class Tokens(BaseModel):
    """What was read."""

    prompt_tokens: int
    total_tokens: int


class Scores(BaseModel):
    """The response of POST /v1/score."""

    id: str
    object: Literal["list"]
    created: int
    model: str = Field(description="NAME/VERSION: what answered.")
    data: list[Score]
    usage: Tokens


def routes(ask: Callable[..., Any], keep: Keep) -> APIRouter:
    """The page. `ask(request, what, reference, items, sizes)` awaits (served, scores [N], rows), or raises an HTTP
    error or Gone; `keep(served, response)` is told what was scored."""
    router = APIRouter(prefix="/v1")
    what = Texts("reward", encoded, check_total)

    @router.post("/score", response_model=Scores,
                 responses=errors_of("/v1/score", 400, 404, 413, 415, 429, 500, 503, 504))
    async def score(question: ScoreQuestion, request: Request) -> Any:
        conversations = [one.conversation() for one in question.input]
        sizes = [sum(len(turn["content"]) for turn in turns) for turns in conversations]
        try:
            served, values, rows = await ask(request, what, question.model, conversations, sizes)
        except Gone:
            return Response(status_code=499)        # nobody reads it
        for conversation in conversations:
            keep(served, conversation[-1]["content"])
        tokens = sum(map(len, rows))
        return {
            "id": f"score-{uuid.uuid4().hex}", "object": "list", "created": int(time.time()),
            "model": f"{served.name}/{served.version}",
            "data": [{"index": i, "object": "score", "score": value} for i, value in enumerate(values)],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    return router


def encoded(served: Served, conversations: Sequence[Conversation], first: int) -> list[list[int]]:
    """Their rows of token ids; the first of them is number `first` of the request. Raises BadRequest."""
    return [row_ids(served, conversation, f"input.{first + i}") for i, conversation in enumerate(conversations)]


def check_total(rows: Sequence[Sequence[int]]) -> None:
    """Raise BadRequest for rows that are too many tokens together."""
    total = sum(map(len, rows))
    if total > MAX_REQUEST_TOKENS:
        raise BadRequest(f"the {len(rows)} rows have {total} tokens, a request may have {MAX_REQUEST_TOKENS}: "
                         "send them in several", "input", "context_length_exceeded")


def row_ids(served: Served, conversation: Conversation, param: str) -> list[int]:
    """The tokens of a conversation up to its last turn's end. Raises BadRequest, naming `param`."""
    check_length(conversation, param)
    try:
        ids = [token for part, _ in chat.segments(served.tokenizer, conversation) for token in part]
    except ValueError as error:
        raise BadRequest(f"{param}: {error}", param) from None
    room = min(served.context, MAX_TOKENS)
    if len(ids) > room:
        raise BadRequest(f"{param} has {len(ids)} tokens, more than the {room} that {served.name}/{served.version} "
                         "takes: shorten it", param, "context_length_exceeded")
    return ids
