"""The HTTP server: text in, a label, a score or more text out, and in every answer the version that gave it.

    POST /classify   {"text": "..."} or {"texts": ["...", ...]}, and "model" for another than the default
    /v1/...          OpenAI's chat and completions: ajuste/serving/v1/completions.py; POST /v1/score:
                     ajuste/serving/v1/scores.py
    GET  /models     what this server answers for, what is loaded, and which versions were refused
    GET  /health     whether it answers, and how much it is doing

    curl -s localhost:8000/classify -H 'content-type: application/json' -d '{"text": "A warm, funny film."}'

Run it: `ajuste serve`. Every error is one JSON object (ajuste/serving/errors.py); no error or log holds a text that was
sent, unless `--log-requests` asks for it: then ajuste/serving/request_log.py keeps texts, redacted and capped, in files
of its own.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from ajuste.serving import errors
from ajuste.serving.batches import Batcher, Busy
from ajuste.serving.follower import Follower
from ajuste.serving.generation import Generation
from ajuste.serving.guard import Guard
from ajuste.serving.limits import BodyLimit, KnownHosts
from ajuste.serving.loading import Served, UnknownModel
from ajuste.serving.models import Models
from ajuste.serving.request_log import RequestLog
from ajuste.serving.v1 import completions, scores

MAX_TEXTS = 256
MAX_CHARS = 20_000
MAX_BODY_BYTES = 4 * 2**20
MAX_FIRST = 32          # requests that wait until a model is loaded that nobody asked for before

Text = Annotated[str, StringConstraints(max_length=MAX_CHARS)]


class Question(BaseModel):
    """The body of POST /classify."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: str | None = Field(None, description="NAME, NAME@ALIAS or NAME/VERSION; the default of /models if absent.")
    text: Text | None = None
    texts: Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)] | None = None

    @model_validator(mode="after")
    def exactly_one(self) -> "Question":
        if (self.text is None) == (self.texts is None):
            raise ValueError('give either "text" or "texts"')
        for i, text in enumerate(self.all_texts()):
            if not text.strip():
                raise ValueError(f"text {i} is empty")
        return self

    def all_texts(self) -> list[str]:
        return [self.text] if self.texts is None else self.texts


class Answer(BaseModel):
    """The label of one text."""

    label: str
    probability: float = Field(description="Of the label.")
    probabilities: dict[str, float] = Field(description="Of every label.")


class Answers(BaseModel):
    """The response of POST /classify: who answers, and one result a text, in their order."""

    model: str
    version: str
    alias: str | None
    strategy: str
    results: list[Answer]


def identity(served: Served) -> dict[str, Any]:
    """Which version this is, as every answer and /models say it."""
    return {"model": served.name, "version": served.version, "alias": served.alias, "strategy": served.strategy}


def described(served: Served) -> dict[str, Any]:
    """A loaded model, as /models says it."""
    card = served.card
    labels = {"labels": card["labels"]} if served.kind == "classifier" else {}
    return identity(served) | {"kind": served.kind, **labels, "max_tokens": card["max_tokens"],
                               "base": card["base"]["id"]}


def answers(labels: Sequence[str], probabilities: Sequence[Sequence[float]]) -> list[Answer]:
    """Probabilities [N, C] as labelled answers; of equal probabilities the first label wins, as argmax does."""
    results = []
    for row in probabilities:
        best = max(range(len(row)), key=row.__getitem__)
        named = dict(zip(labels, row, strict=True))
        results.append(Answer(label=labels[best], probability=row[best], probabilities=named))
    return results


def make_app(
    models: Models, hosts: Sequence[str] = ("127.0.0.1", "localhost"), requests: RequestLog | None = None,
    guard: Guard | None = None,
) -> FastAPI:
    """The server for these models. `hosts` are the names that a request may call it by (a browser page that points a
    name of its own at this machine is refused). `requests` keeps what was asked; without it nothing does. `guard`
    filters what assistants are asked and answer; without it nothing does."""

    def keep(served: Served, text: str, label: str | None = None, probability: float | None = None) -> None:
        if requests:
            requests.add(served, text, label, probability)

    def work(asked: tuple[str, str], texts: list) -> tuple[Served, list]:
        kind, reference = asked
        served = models.get(reference or models.default(kind))
        return served, scores.scored(served, texts) if kind == "reward" else served.probabilities(texts).tolist()

    prepare, generation, follower = FirstLoads(models), Generation(models), Follower(models)
    batcher = Batcher(work, generation=generation)

    async def ask(kind: str, reference: str, texts: list) -> Any:
        await prepare(kind, reference)
        return await _asked(lambda: batcher.submit((kind, reference), texts))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        follower.start()
        yield
        follower.close()
        batcher.close()
        if requests:
            requests.close()

    app = FastAPI(title="Ajuste", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.generation = generation
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)
    app.add_middleware(KnownHosts, hosts=hosts)
    errors.install(app)
    app.include_router(completions.routes(models, prepare, batcher.generate, keep, guard))
    app.include_router(scores.routes(partial(ask, "reward"), keep))
    app.include_router(_label_pages(partial(ask, "classifier"), keep))
    app.include_router(_state_pages(models, generation, requests, guard))
    return app


class FirstLoads:
    """Awaited before a request is answered: loads what it names, if that is not loaded, beside the inference thread,
    so that the others' answers go on. It raises an HTTP error, also if too many wait for their models already."""

    def __init__(self, models: Models):
        self._models, self._waiting = models, 0

    async def __call__(self, kind: str, reference: str) -> None:
        try:
            if self._models.is_ready(reference, kind):
                return
            if self._waiting >= MAX_FIRST:
                raise Busy(f"{self._waiting} requests wait for models to load: try again in a moment")
            self._waiting += 1
            try:
                await asyncio.to_thread(lambda: self._models.get(reference or self._models.default(kind)))
            finally:
                self._waiting -= 1
        except Exception as error:
            raise errors.refusal(error) from None


def _label_pages(ask: Callable[[str, list[str]], Any], keep: Callable[..., None]) -> APIRouter:
    """POST /classify. `ask(reference, texts)` awaits (served, probabilities [N][C]), or raises an HTTP error; `keep` is
    told what was labelled, and how."""
    router = APIRouter()

    @router.post("/classify")
    async def classify(question: Question) -> Answers:
        served, rows = await ask(question.model or "", question.all_texts())
        results = answers(served.card["labels"], rows)
        for text, result in zip(question.all_texts(), results, strict=True):
            keep(served, text, result.label, result.probability)
        return Answers(**identity(served), results=results)

    return router


def _state_pages(
    models: Models, generation: Generation, requests: RequestLog | None, guard: Guard | None
) -> APIRouter:
    """GET /models and GET /health."""
    router = APIRouter()

    @router.get("/models")
    def list_models() -> dict[str, Any]:
        default = {}
        for kind in ("classifier", "decoder", "reward"):
            with contextlib.suppress(UnknownModel):
                default[kind] = models.default(kind)
        return {"default": default, "names": models.names, "loaded": [described(one) for one in models.loaded()],
                "refused": models.refused()}

    @router.get("/health")
    def health() -> dict[str, Any]:
        return {"status": "ok", "loaded": [f"{served.name}/{served.version}" for served in models.loaded()],
                "refused": models.refused(), **generation.load(),
                "request_log": requests.counts() if requests else None,
                "filtered": guard.counts() if guard else None}

    return router


async def _asked(submit: Callable[[], Any]) -> Any:
    """Wait for the inference thread without blocking the server; its refusals become HTTP errors."""
    try:
        return await asyncio.wrap_future(submit())
    except Exception as error:
        raise errors.refusal(error) from None
