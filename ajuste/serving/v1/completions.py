"""The OpenAI-compatible half of the server: chat and completions, whole or streamed, and the list of models.

    POST /v1/chat/completions   {"model": "assistant", "messages": [{"role": "user", "content": "..."}]}
    POST /v1/completions        {"model": "assistant", "prompt": "..."}: the text is continued as it is, no template
    GET  /v1/models             names of decoders; each also as NAME@ALIAS and NAME/VERSION
    GET  /v1/models/NAME        one of them, in any of these forms

    openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none").chat.completions.create(model=..., messages=...)

What may be sent is said in ajuste/serving/v1/questions.py, what comes back in ajuste/serving/v1/shape.py. The answer's
`model` is NAME/VERSION: the version that gave it. A client that goes away ends its generation. What the server filters
of both is ajuste/serving/guard.py's.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from ajuste.serving import errors
from ajuste.serving.batches import Busy, Ending
from ajuste.serving.door.documents import errors_of
from ajuste.serving.door.patience import Gone, gone
from ajuste.serving.guard import Guard
from ajuste.serving.jobs import Finished, Job, Started
from ajuste.serving.loading import Served, UnknownModel
from ajuste.serving.models import Models
from ajuste.serving.tokens import Token
from ajuste.serving.v1.answers import ChatChunk, ChatCompletion, Model, ModelList, TextCompletion, answers_of
from ajuste.serving.v1.questions import ChatQuestion, TextQuestion
from ajuste.serving.v1.shape import Choice, Shape

Prepare = Callable[[Request, str, str], Awaitable[Any]]
Generate = Callable[[Job], Awaitable[None]]
Keep = Callable[[Served, str], None]
Event = tuple[int, Any]                     # of which choice, and what
SEPARATORS = {"\u0085": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}      # clients split streams at these too


def routes(models: Models, prepare: Prepare, generate: Generate, keep: Keep, guard: Guard | None = None) -> APIRouter:
    """The pages under /v1. `prepare(request, kind, reference)` awaits that model or raises an HTTP error; `generate`
    tokenizes a job and queues it for the inference thread, or raises Busy or Ending; `keep(served, text)` is told what
    a model was asked; `guard` filters prompts and answers."""
    router = APIRouter(prefix="/v1")
    wrong = errors_of("/v1/", 400, 404, 413, 415, 429, 500, 503, 504)

    @router.post("/chat/completions", responses=answers_of(ChatCompletion, ChatChunk) | wrong)
    async def chat(question: ChatQuestion, request: Request) -> Response:
        await prepare(request, "decoder", question.model)
        prompts = [[message.plain() for message in question.messages]]
        return await answer(request, question, prompts, question.max_completion_tokens or question.max_tokens,
                            generate, keep, guard)

    @router.post("/completions", responses=answers_of(TextCompletion, TextCompletion) | wrong)
    async def complete(question: TextQuestion, request: Request) -> Response:
        await prepare(request, "decoder", question.model)
        return await answer(request, question, question.prompt, question.max_tokens, generate, keep, guard)

    @router.get("/models", response_model=ModelList, responses=errors_of("/v1/", 500))
    def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [described(name) for name in models.of_kind("decoder")]}

    @router.get("/models/{reference:path}", response_model=Model, responses=errors_of("/v1/", 404, 500))
    def one_model(reference: str) -> dict[str, Any]:
        try:
            if models.find(reference).name not in models.of_kind("decoder"):
                raise UnknownModel(f"`{reference}` writes no text: GET /models says what it is")
        except UnknownModel as error:
            raise errors.refusal(error) from None
        return described(reference)

    return router


def described(reference: str) -> dict[str, Any]:
    """A model as OpenAI's list has it."""
    return {"id": reference, "object": "model", "created": 0, "owned_by": "ajuste"}


async def answer(
    request: Request, question: ChatQuestion | TextQuestion, prompts: list[str] | list[list[dict[str, str]]],
    max_tokens: int | None, generate: Generate, keep: Keep, guard: Guard | None,
) -> Response:
    """Queue the request, a job a choice, and wait for its text, or give it piece by piece. Raises errors.Refusal.

    The choices are the n of the first prompt, then those of the second, and so on.
    """
    loop, events = asyncio.get_running_loop(), asyncio.Queue()
    if guard:
        prompts = await asyncio.to_thread(guard.asked, prompts)

    def deliver(index: int, event: Any) -> None:    # called in the inference thread
        with contextlib.suppress(RuntimeError):     # the loop is closed: the server has ended
            loop.call_soon_threadsafe(events.put_nowait, (index, event))

    n = question.n
    jobs = [Job(question.model, prompts[index // n], partial(deliver, index), max_tokens, question.temperature,
                question.top_p, None if question.seed is None else question.seed + index % n, tuple(question.stop),
                question.top(), guard and guard.answer(prompts[index // n]))
            for index in range(len(prompts) * n)]
    if question.top() is not None and jobs[0].guard:
        raise errors.Refusal(400, "this server filters answers, and their tokens' log-probabilities would show what it "
                                  "masks: leave `logprobs` out", "logprobs", "unsupported_parameter")
    watcher = asyncio.create_task(_watch(request, events))
    streaming = False
    try:
        for job in jobs:
            await generate(job)
        started, early = await _all_started(events, len(jobs))
        for prompt in prompts:
            keep(started[0].served, prompt if isinstance(prompt, str) else last_of_user(prompt))
        shape = Shape(started[0].served, sum(started[i].prompt_tokens for i in range(0, len(jobs), n)),
                      isinstance(question, TextQuestion), question.stream, question.top() is not None)
        coming = _until_finished(events, early, len(jobs))
        choices = [Choice(index) for index in range(len(jobs))]
        if question.stream:
            streaming = True
            pieces = stream(jobs, coming, shape, choices, question.stream_options.include_usage)
            return StreamingResponse(pieces, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        async for index, event in coming:
            _put(choices[index], event)
        return JSONResponse(shape.whole(choices))
    except (Busy, Ending) as error:
        raise errors.refusal(error) from None
    except Gone:
        return Response(status_code=499)            # nobody reads it
    finally:
        watcher.cancel()
        for job in jobs:
            job.cancelled = not streaming           # means nothing once it has finished


async def _all_started(events: asyncio.Queue, count: int) -> tuple[dict[int, Started], list[Event]]:
    """Wait until every choice has joined; gives their Started and what came meanwhile. Raises Busy where an
    alias moved between two of them: an answer names one version."""
    started: dict[int, Started] = {}
    early: list[Event] = []
    while len(started) < count:
        index, event = await _next(events)
        if isinstance(event, Started):
            started[index] = event
        else:
            early.append((index, event))
    if len({(one.served.name, one.served.version) for one in started.values()}) > 1:
        raise Busy("the model's alias moved while the choices were begun: ask again")
    return started, early


async def _until_finished(events: asyncio.Queue, early: list[Event], count: int) -> AsyncIterator[Event]:
    """What comes of all choices, up to the last one's end."""
    while count:
        index, event = early.pop(0) if early else await _next(events)
        count -= isinstance(event, Finished)
        yield index, event


def _put(choice: Choice, event: Any) -> None:
    """Take an event into the choice."""
    if isinstance(event, Finished):
        choice.finished = event
    elif isinstance(event, Token):
        choice.tokens.append(event)
    else:
        choice.pieces.append(event)


def last_of_user(messages: list[dict[str, str]]) -> str:
    """The text of the user's last turn."""
    return next((turn["content"] for turn in reversed(messages) if turn["role"] == "user"), "")


async def stream(
    jobs: list[Job], coming: AsyncIterator[Event], shape: Shape, choices: list[Choice], include_usage: bool,
) -> AsyncIterator[str]:
    """Server-sent events: one a piece of text. Closed early, when the client goes away, it ends the generation."""
    try:
        for choice in choices:
            yield _event(shape.piece(choice, "", first=True))
        async for index, event in coming:
            choice = choices[index]
            if isinstance(event, str):
                yield _event(shape.piece(choice, event))
                continue
            _put(choice, event)
            if isinstance(event, Finished):
                yield _event(shape.last(choice))
        if include_usage:
            yield _event(shape.head | {"choices": [], "usage": shape.usage(choices)})
        yield "data: [DONE]\n\n"
    except errors.Refusal as error:
        yield _event(errors.body("/v1/", error.status_code, str(error.detail), error.param, error.code))
    except Exception as error:                      # the status is sent already
        yield _event(errors.body("/v1/", 500, errors.our_fault(error)))
    finally:
        for job in jobs:
            job.cancelled = True


async def _next(events: asyncio.Queue) -> Event:
    """The next event of a request's jobs; one that is an error is raised."""
    index, event = await events.get()
    if isinstance(event, Exception):
        raise errors.refusal(event) from None
    return index, event


async def _watch(request: Request, events: asyncio.Queue) -> None:
    """Put Gone among the events when the client goes away."""
    await gone(request)
    events.put_nowait((0, Gone()))


def _event(content: dict[str, Any]) -> str:
    text = json.dumps(content, ensure_ascii=False)
    for character, escaped in SEPARATORS.items():
        text = text.replace(character, escaped)
    return f"data: {text}\n\n"
