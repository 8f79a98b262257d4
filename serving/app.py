"""The HTTP server: text in, label with probability out, and in every answer the version that gave it.

    POST /classify   {"text": "..."} or {"texts": ["...", ...]}, and "model" for another than the default
    GET  /models     what this server answers for, and what is loaded
    GET  /health     whether it answers

    curl -s localhost:8000/classify -H 'content-type: application/json' -d '{"text": "A warm, funny film."}'

Run it: `ajuste serve`. Every error is JSON, {"error": "what is wrong and what to do"}; no answer or log holds a text.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from starlette.exceptions import HTTPException as StarletteHTTPException

from serving.batches import Batcher, Busy
from serving.limits import BodyLimit, KnownHosts
from serving.models import Models, RefusedModel, Served, UnknownModel

MAX_TEXTS = 256
MAX_CHARS = 20_000
MAX_BODY_BYTES = 4 * 2**20

log = logging.getLogger("ajuste.serving")
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


def answers(labels: Sequence[str], probabilities: Sequence[Sequence[float]]) -> list[Answer]:
    """Probabilities [N, C] as labelled answers; of equal probabilities the first label wins, as argmax does."""
    results = []
    for row in probabilities:
        best = max(range(len(row)), key=row.__getitem__)
        named = dict(zip(labels, row, strict=True))
        results.append(Answer(label=labels[best], probability=row[best], probabilities=named))
    return results


def make_app(models: Models, hosts: Sequence[str] = ("127.0.0.1", "localhost")) -> FastAPI:
    """The server for these models. `hosts` are the names that a request may call it by (a browser page that points a
    name of its own at this machine is refused)."""

    def work(reference: str, texts: list[str]) -> tuple[Served, list[list[float]]]:
        served = models.get(reference)
        return served, served.probabilities(texts).tolist()

    batcher = Batcher(work)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        batcher.close()

    app = FastAPI(title="Ajuste", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)
    app.add_middleware(KnownHosts, hosts=hosts)
    _json_errors(app)

    @app.post("/classify")
    async def classify(question: Question) -> Answers:
        reference = question.model or models.default
        served, rows = await _asked(lambda: batcher.submit(reference, question.all_texts()))
        return Answers(**identity(served), results=answers(served.card["labels"], rows))

    @app.get("/models")
    def list_models() -> dict[str, Any]:
        loaded = [
            identity(served) | {"labels": served.card["labels"], "max_tokens": served.card["max_tokens"],
                                "base": served.card["base"]["id"]}
            for served in models.loaded()
        ]
        return {"default": models.default, "names": models.names, "loaded": loaded}

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {"status": "ok", "loaded": [f"{served.name}/{served.version}" for served in models.loaded()]}

    return app


async def _asked(submit: Callable[[], Any]) -> Any:
    """Wait for the inference thread without blocking the server; its refusals become HTTP errors."""
    try:
        return await asyncio.wrap_future(submit())
    except UnknownModel as error:
        raise HTTPException(404, str(error)) from None
    except RefusedModel as error:
        raise HTTPException(503, str(error)) from None
    except Busy as error:
        raise HTTPException(503, str(error), headers={"Retry-After": "1"}) from None


def _json_errors(app: FastAPI) -> None:
    """Every error as {"error": ...}; a fault of the request names the field, never the text."""

    @app.exception_handler(StarletteHTTPException)
    async def http_error(_: Request, error: StarletteHTTPException) -> JSONResponse:
        what = "no such page: there is POST /classify, GET /models and GET /health"
        message = what if error.detail == "Not Found" else str(error.detail)
        return JSONResponse({"error": message}, error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def bad_request(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        kind = request.headers.get("content-type", "missing")
        if not kind.startswith("application/json"):
            return JSONResponse({"error": f"the content-type is {kind[:80]}: send JSON as application/json"}, 415)
        if first["type"] == "json_invalid":
            return JSONResponse({"error": f"the body is no valid JSON: {first['ctx']['error']} at character "
                                          f"{first['loc'][-1]}"}, 400)
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        what = first["msg"].removeprefix("Value error, ")
        usage = '{"text": "..."} or {"texts": ["...", ...]}, optional "model"'
        return JSONResponse({"error": f"{where + ': ' if where else ''}{what}; the body is {usage}"}, 422)

    @app.exception_handler(Exception)
    async def our_fault(_: Request, error: Exception) -> JSONResponse:
        log.error("%s while answering", type(error).__name__)
        return JSONResponse({"error": f"the server failed ({type(error).__name__}); its log says more"}, 500)
