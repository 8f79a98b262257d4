"""How the server is: for people, for whoever starts it again, for whoever sends it requests, and for Prometheus.

    GET /models    what is answered for, what is loaded, and which versions were refused
    GET /health    how much it is doing; always 200 while it answers at all
    GET /livez     200, or 503 when the inference thread has ended or is STUCK_SECONDS at one piece of work: start again
    GET /readyz    200, or 503 while no model is loaded, the thread is BEHIND_SECONDS at one piece, or the server ends
    GET /metrics   Prometheus' text (ajuste/serving/door/metrics.py)
"""

import contextlib
from typing import Any, Protocol

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from ajuste.serving.door.documents import errors_of
from ajuste.serving.door.metrics import Metrics
from ajuste.serving.loading import Served, UnknownModel
from ajuste.serving.models import Models
from ajuste.serving.pages.labels import identity

STUCK_SECONDS = 120.0
BEHIND_SECONDS = 15.0


class Known(BaseModel):
    """The answer of GET /models."""

    default: dict[str, str] = Field(description="What answers a request that names no model, by kind.")
    names: list[str]
    loaded: list[dict[str, Any]]
    refused: dict[str, dict[str, str]] = Field(description="Which version, and why.")


class Health(BaseModel):
    """The answer of GET /health."""

    status: str
    loaded: list[str]
    refused: dict[str, dict[str, str]]
    generating: int = Field(description="Answers under way.")
    waiting: int = Field(description="Answers that wait for room.")
    queue: dict[str, int] = Field(description="Requests for labels and scores that are not done, and their tokens.")
    request_log: dict[str, int] | None
    filtered: dict[str, int] | None


class Able(BaseModel):
    """The answer of GET /livez and GET /readyz."""

    status: str = Field(description="`ok`, or what is wrong.")


class Server(Protocol):
    """What the pages tell of: ajuste/serving/app.py's parts."""

    models: Models
    metrics: Metrics
    ending: bool

    def stuck(self) -> float: ...
    def health(self) -> dict[str, Any]: ...


def described(served: Served) -> dict[str, Any]:
    """A loaded model, as /models says it."""
    card = served.card
    labels = {"labels": card["labels"]} if served.kind == "classifier" else {}
    return identity(served) | {"kind": served.kind, **labels, "max_tokens": card["max_tokens"],
                               "base": card["base"]["id"]}


def routes(server: Server) -> APIRouter:
    """The pages."""
    router, models = APIRouter(), server.models
    fault = errors_of("", 500)
    unable = {503: {"model": Able, "description": "Not now: `status` says why."}}

    @router.get("/models", response_model=Known, responses=fault)
    def list_models() -> dict[str, Any]:
        default = {}
        for kind in ("classifier", "decoder", "reward"):
            with contextlib.suppress(UnknownModel):
                default[kind] = models.default(kind)
        return {"default": default, "names": models.names, "loaded": [described(one) for one in models.loaded()],
                "refused": models.refused()}

    @router.get("/health", response_model=Health, responses=fault)
    async def health() -> dict[str, Any]:
        return server.health()

    @router.get("/livez", response_model=Able, responses=fault | unable)
    async def live() -> Any:
        return _able(_dead(server, STUCK_SECONDS))

    @router.get("/readyz", response_model=Able, responses=fault | unable)
    async def ready() -> Any:
        why = "the server is ending" if server.ending else "" if models.loaded() else "no model is loaded"
        return _able(why or _dead(server, BEHIND_SECONDS))

    @router.get("/metrics", response_class=Response,
                responses=fault | {200: {"content": {server.metrics.content_type: {"schema": {"type": "string"}}}}})
    async def metrics() -> Response:
        return Response(server.metrics.text(), headers={"content-type": server.metrics.content_type})

    return router


def _dead(server: Server, seconds: float) -> str:
    took = server.stuck()
    if took == float("inf"):
        return "the inference thread has ended"
    return f"the inference thread is {took:.0f} s at one piece of work" if took > seconds else ""


def _able(why: str) -> JSONResponse:
    return JSONResponse({"status": why or "ok"}, 503 if why else 200)
