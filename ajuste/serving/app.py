"""The HTTP server: text in, a label, a score or more text out, and in every answer the version that gave it.

    POST /classify   texts are labelled: ajuste/serving/pages/labels.py
    /v1/...          OpenAI's chat and completions: ajuste/serving/v1/completions.py; POST /v1/score:
                     ajuste/serving/v1/scores.py
    GET  /models, /health, /livez, /readyz, /metrics     how it is: ajuste/serving/pages/state.py

    curl -s localhost:8000/classify -H 'content-type: application/json' -d '{"text": "A warm, funny film."}'

Run it: `ajuste serve`. A request passes ajuste/serving/door/ first (its id, its host, the size of its body), waits for
its model, is tokenized in one thread and computed in another (ajuste/serving/batches.py). Every error is one JSON
object (ajuste/serving/errors.py); no error or log holds a text that was sent, unless `--log-requests` asks for it: then
ajuste/serving/log/requests.py keeps texts, redacted and capped, in files of its own.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from starlette.types import ASGIApp

from ajuste.serving import errors
from ajuste.serving.batches import Batcher
from ajuste.serving.door import documents
from ajuste.serving.door.connections import Counted
from ajuste.serving.door.first_loads import FirstLoads
from ajuste.serving.door.ledger import Ledger
from ajuste.serving.door.limits import BodyLimit, KnownHosts
from ajuste.serving.door.metrics import Metrics
from ajuste.serving.door.patience import Texts, Tokenizing, within
from ajuste.serving.follower import Follower
from ajuste.serving.generation import Generation
from ajuste.serving.guard import Guard
from ajuste.serving.jobs import Job
from ajuste.serving.loading import Served
from ajuste.serving.log.requests import RequestLog
from ajuste.serving.models import Models
from ajuste.serving.pages import labels, state
from ajuste.serving.v1 import completions, scores

MAX_BODY_BYTES = 4 * 2**20
COMPUTED = {"classifier": "labelled", "reward": "scored"}


class Parts:
    """What the pages of one server share."""

    def __init__(self, models: Models, requests: RequestLog | None, guard: Guard | None) -> None:
        self.models, self.requests, self.guard = models, requests, guard
        self.generation, self.tokenizing = Generation(models), Tokenizing()
        self.batcher = Batcher(lambda served, rows: served.compute(rows), generation=self.generation)
        self.prepare, self.follower = FirstLoads(models), Follower(models)
        self.connections = Counted()            # of the app, where ajuste/serving/door/connections.py serves it
        self.metrics = Metrics(self._gauges, self._counters)
        self.ending = False

    def close(self) -> None:
        """End the threads; what is queued is answered first, generations are not."""
        self.ending = True
        self.follower.close()
        self.tokenizing.close()
        self.batcher.close()
        if self.requests:
            self.requests.close()

    def keep(self, served: Served, text: str, label: str | None = None, probability: float | None = None) -> None:
        """Note what was asked, where that is asked for."""
        if self.requests:
            self.requests.add(served, text, label, probability)

    async def ask(
        self, request: Request, what: Texts, reference: str, items: Sequence, sizes: Sequence[int]
    ) -> tuple[Served, list, list[list[int]]]:
        """The model of that reference, what it makes of each item, and the items' rows of token ids. Raises
        errors.Refusal, also when it takes too long, and Gone."""

        async def work() -> tuple[Served, list, list[list[int]]]:
            served = await self.prepare(request, what.kind, reference)
            return served, *await what.ask(served, items, sizes, self.batcher, self.tokenizing)

        served, results, rows = await within(request, work())
        self.metrics.computed(COMPUTED[what.kind], sum(map(len, rows)))
        return served, results, rows

    async def generate(self, job: Job) -> None:
        """Tokenize a job and queue it. Raises Busy and Ending; what is wrong with the job is told to it."""
        await self.tokenizing.run(self.batcher.generate, job)

    def stuck(self) -> float:
        """Seconds that the inference thread has been at its present piece of work."""
        return self.batcher.stuck()

    def health(self) -> dict[str, Any]:
        """As GET /health says it."""
        return {"status": "ok", "loaded": [f"{served.name}/{served.version}" for served in self.models.loaded()],
                "refused": self.models.refused(), **self.generation.load(), "queue": self.batcher.load(),
                "request_log": self.requests.counts() if self.requests else None,
                "filtered": self.guard.counts() if self.guard else None}

    def _gauges(self) -> dict[str, float]:
        queue = {f"queue_{name}": number for name, number in self.batcher.load().items()}
        return {**self.generation.load(), **queue, "busy_seconds": self.stuck(),
                "connections": len(self.connections.open), "models_loaded": len(self.models.loaded()),
                "models_bytes": self.models.held(), "models_refused": len(self.models.refused())}

    def _counters(self) -> dict[str, float]:
        return {"slow_clients": self.connections.slow, "generated_tokens": self.generation.counts["tokens"]}


class App(FastAPI):
    """FastAPI inside the ledger: an answer to a fault of ours, which FastAPI makes last of all, is an entry too."""

    parts: Parts

    def build_middleware_stack(self) -> ASGIApp:
        return Ledger(super().build_middleware_stack(), self.parts.metrics)


def make_app(
    models: Models, hosts: Sequence[str] = ("127.0.0.1", "localhost"), requests: RequestLog | None = None,
    guard: Guard | None = None,
) -> App:
    """The server for these models. `hosts` are the names that a request may call it by (a browser page that points a
    name of its own at this machine is refused). `requests` keeps what was asked; without it nothing does. `guard`
    filters what assistants are asked and answer; without it nothing does. ajuste/serving/door/connections.py serves it
    with limits on slow clients."""
    parts = Parts(models, requests, guard)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        parts.connections = getattr(app.state, "connections", parts.connections)
        parts.follower.start()
        yield
        parts.close()

    app = App(title="Ajuste", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.parts, app.state.generation = parts, parts.generation
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)
    app.add_middleware(KnownHosts, hosts=hosts)
    errors.install(app)
    app.include_router(completions.routes(models, parts.prepare, parts.generate, parts.keep, guard))
    app.include_router(scores.routes(parts.ask, parts.keep))
    app.include_router(labels.routes(parts.ask, parts.keep))
    app.include_router(state.routes(parts))
    documents.describe(app)
    return app
