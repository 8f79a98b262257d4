"""The schemas of what comes from /v1, for GET /openapi.json; ajuste/serving/v1/shape.py makes the objects.

    whole      ChatCompletion, TextCompletion
    streamed   server-sent events, each `data: ` and a ChatChunk or a TextCompletion; the last is `data: [DONE]`
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Reason = Literal["stop", "length", "content_filter"]


class Exact(BaseModel):
    """No field that is not named here."""

    model_config = ConfigDict(extra="forbid")


class Usage(Exact):
    """Tokens that were read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TokenShown(Exact):
    """A token, its log-probability and its bytes; null for a control token."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenChosen(TokenShown):
    """A token of the answer, and what might have stood there."""

    top_logprobs: list[TokenShown]


class ChatLogprobs(Exact):
    content: list[TokenChosen]
    refusal: None


class TextLogprobs(Exact):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class Said(Exact):
    role: Literal["assistant"]
    content: str


class Delta(Exact):
    role: Literal["assistant"] = "assistant"
    content: str = ""


class ChatChoice(Exact):
    index: int
    message: Said
    logprobs: ChatLogprobs | None
    finish_reason: Reason


class ChatChunkChoice(Exact):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Reason | None


class TextChoice(Exact):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Reason | None


class Head(Exact):
    id: str
    created: int
    model: str = Field(description="NAME/VERSION: what answered.")
    usage: Usage | None = Field(None, description="In a stream at its end, and only where it was asked for.")


class ChatCompletion(Head):
    """A whole answer in a chat."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class ChatChunk(Head):
    """A piece of one."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]


class TextCompletion(Head):
    """A text that is continued, whole or a piece of it."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class Model(Exact):
    """One of the models that write text."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Exact):
    object: Literal["list"]
    data: list[Model]


def answers_of(whole: type[BaseModel], piece: type[BaseModel]) -> dict[int, dict[str, Any]]:
    """Status 200 of a page that answers whole or in pieces, as FastAPI's `responses` takes it."""
    events = {"schema": {"type": "string", "description": f"Events of {piece.__name__} ({piece.__doc__.strip()})"}}
    return {200: {"model": whole, "content": {"text/event-stream": events}}}
