"""The OpenAI-compatible half of the server: chat and completions, whole or streamed, and the list of models.

    POST /v1/chat/completions   {"model": "assistant", "messages": [{"role": "user", "content": "..."}]}
    POST /v1/completions        {"model": "assistant", "prompt": "..."}: the text is continued as it is, no template
    GET  /v1/models             names of decoders; each also as NAME@ALIAS and NAME/VERSION

    openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none").chat.completions.create(model=..., messages=...)

Taken: model, max_tokens, max_completion_tokens, temperature, top_p, seed, stop, stream, stream_options, user (ignored).
What this server cannot do is refused with the parameter's name, unless its value changes nothing (n=1, ...).
The answer's `model` is NAME/VERSION: the version that gave it. A client that goes away ends its generation.
"""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ajuste.serving import errors
from ajuste.serving.batches import Busy
from ajuste.serving.generation import Finished, Job, Started
from ajuste.serving.loading import Served
from ajuste.serving.models import Models

MAX_CHARS = 100_000
MAX_MESSAGES = 256

# Parameters of OpenAI's interface that this server does not have, with the values that change nothing.
NEUTRAL: dict[str, tuple] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "suffix": ("",), "logprobs": (False,), "store": (False,),
    "frequency_penalty": (0, 0.0), "presence_penalty": (0, 0.0), "logit_bias": ({},), "tools": ([],),
    "tool_choice": ("none", "auto"), "response_format": ({"type": "text"},),
}

Prepare = Callable[[str, str], Awaitable[None]]
Keep = Callable[[Served, str], None]
Content = Annotated[str, StringConstraints(max_length=MAX_CHARS)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Strict(BaseModel):
    """Nothing is guessed: no unknown field, no text for a number. A field that is null counts as absent."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def without_nulls(cls, given: Any) -> Any:
        return {key: value for key, value in given.items() if value is not None} if isinstance(given, dict) else given


class Part(Strict):
    """A part of a message's content; text is the only kind."""

    type: Literal["text"]
    text: Content


class Message(Strict):
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: Content | list[Part]

    def plain(self) -> dict[str, str]:
        """The turn as the chat template takes it."""
        if isinstance(self.content, str):
            return {"role": self.role, "content": self.content}
        return {"role": self.role, "content": "".join(part.text for part in self.content)}


class StreamOptions(Strict):
    include_usage: bool = False


class Question(Strict):
    """What both kinds of completion take."""

    model: str = Field("", description="NAME, NAME@ALIAS or NAME/VERSION; the first decoder if absent.")
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[list[Stop], Field(max_length=4)] = []
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    user: str = ""

    @model_validator(mode="before")
    @classmethod
    def only_what_there_is(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        for name, neutral in NEUTRAL.items():
            value = given.get(name)
            if value is not None and not any(value == one and type(value) is type(one) for one in neutral):
                raise PydanticCustomError("unsupported", "this server cannot do that: leave it out", {"param": name})
        return {key: value for key, value in given.items() if key not in NEUTRAL}

    @field_validator("stop", mode="before")
    @classmethod
    def one_or_more(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given


class ChatQuestion(Question):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: int | None = Field(None, ge=1)


class TextQuestion(Question):
    """The body of POST /v1/completions."""

    prompt: Content = Field(min_length=1)


class Gone(Exception):
    """The client went away."""


def routes(models: Models, prepare: Prepare, generate: Callable[[Job], None], keep: Keep) -> APIRouter:
    """The pages under /v1. `prepare(kind, reference)` awaits that model or raises an HTTP error; `generate` queues a
    job for the inference thread, or raises Busy; `keep(served, text)` is told what a model was asked."""
    router = APIRouter(prefix="/v1")

    @router.post("/chat/completions")
    async def chat(question: ChatQuestion, request: Request) -> Response:
        await prepare("decoder", question.model)
        prompt = [message.plain() for message in question.messages]
        return await answer(request, question, prompt, question.max_completion_tokens or question.max_tokens,
                            generate, keep)

    @router.post("/completions")
    async def complete(question: TextQuestion, request: Request) -> Response:
        await prepare("decoder", question.model)
        return await answer(request, question, question.prompt, question.max_tokens, generate, keep)

    @router.get("/models")
    def list_models() -> dict[str, Any]:
        found = [{"id": name, "object": "model", "created": 0, "owned_by": "ajuste"}
                 for name in models.of_kind("decoder")]
        return {"object": "list", "data": found}

    return router


async def answer(
    request: Request, question: Question, prompt: str | list[dict[str, str]], max_tokens: int | None,
    generate: Callable[[Job], None], keep: Keep,
) -> Response:
    """Queue the request and wait for its text, or give it piece by piece. Raises errors.Refusal."""
    loop, events = asyncio.get_running_loop(), asyncio.Queue()

    def deliver(event: Any) -> None:                # called in the inference thread
        with contextlib.suppress(RuntimeError):     # the loop is closed: the server has ended
            loop.call_soon_threadsafe(events.put_nowait, event)

    job = Job(question.model, prompt, deliver, max_tokens, question.temperature, question.top_p, question.seed,
              tuple(question.stop))
    watcher = asyncio.create_task(_watch(request, events))
    streaming = False
    try:
        generate(job)
        started: Started = await _next(events)
        keep(started.served, prompt if isinstance(prompt, str) else last_of_user(prompt))
        shape = Shape(started, isinstance(prompt, str), question.stream)
        if question.stream:
            streaming = True
            pieces = stream(job, events, shape, question.stream_options.include_usage)
            return StreamingResponse(pieces, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        texts = []
        while not isinstance(event := await _next(events), Finished):
            texts.append(event)
        return JSONResponse(shape.whole("".join(texts), event))
    except Busy as error:
        raise errors.refusal(error) from None
    except Gone:
        return Response(status_code=499)            # nobody reads it
    finally:
        watcher.cancel()
        job.cancelled = not streaming               # means nothing once it has finished


def last_of_user(messages: list[dict[str, str]]) -> str:
    """The text of the user's last turn."""
    return next((turn["content"] for turn in reversed(messages) if turn["role"] == "user"), "")


async def stream(job: Job, events: asyncio.Queue, shape: "Shape", include_usage: bool) -> AsyncIterator[str]:
    """Server-sent events: one a piece of text. Closed early, when the client goes away, it ends the generation."""
    try:
        yield _event(shape.piece("", first=True))
        while not isinstance(event := await _next(events), Finished):
            yield _event(shape.piece(event))
        yield _event(shape.last(event))
        if include_usage:
            yield _event(shape.head | {"choices": [], "usage": shape.usage(event)})
        yield "data: [DONE]\n\n"
    except errors.Refusal as error:
        yield _event(errors.body("/v1/", error.status_code, str(error.detail), error.param, error.code))
    except Exception as error:                      # the status is sent already
        yield _event(errors.body("/v1/", 500, errors.our_fault(error)))
    finally:
        job.cancelled = True


async def _next(events: asyncio.Queue) -> Any:
    """The next event of a job; one that is an error is raised."""
    event = await events.get()
    if isinstance(event, Exception):
        raise errors.refusal(event) from None
    return event


async def _watch(request: Request, events: asyncio.Queue) -> None:
    """Put Gone among the events when the client goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    events.put_nowait(Gone())


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


class Shape:
    """OpenAI's objects for one answer: of a chat, or of a text that is continued."""

    def __init__(self, started: Started, text: bool, chunks: bool) -> None:
        self.text, self.prompt_tokens = text, started.prompt_tokens
        name = "text_completion" if text else "chat.completion"
        self.head = {
            "id": f"{'cmpl' if text else 'chatcmpl'}-{uuid.uuid4().hex}",
            "object": f"{name}.chunk" if chunks and not text else name,
            "created": int(time.time()), "model": f"{started.served.name}/{started.served.version}",
        }

    def whole(self, text: str, finished: Finished) -> dict[str, Any]:
        """The answer in one piece."""
        said = {"text": text} if self.text else {"message": {"role": "assistant", "content": text}}
        return self.head | {"choices": [self._choice(said, finished.reason)], "usage": self.usage(finished)}

    def piece(self, text: str, first: bool = False) -> dict[str, Any]:
        """One piece of a stream; the first one of a chat names the role."""
        said = {"text": text} if self.text else {"delta": {"content": text} | ({"role": "assistant"} if first else {})}
        return self.head | {"choices": [self._choice(said, None)]}

    def last(self, finished: Finished) -> dict[str, Any]:
        """The end of a stream, which says why."""
        return self.head | {"choices": [self._choice({"text": ""} if self.text else {"delta": {}}, finished.reason)]}

    def usage(self, finished: Finished) -> dict[str, int]:
        """How many tokens went in and came out."""
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": finished.completion_tokens,
                "total_tokens": self.prompt_tokens + finished.completion_tokens}

    @staticmethod
    def _choice(said: dict[str, Any], reason: str | None) -> dict[str, Any]:
        return {"index": 0, **said, "logprobs": None, "finish_reason": reason}
