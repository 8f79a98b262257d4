"""Every request's id, its entry in the metrics, and, where it is asked for, its line in a log of JSON lines.

    x-request-id    taken from the request if it is at most 64 letters, digits, `.`, `_` and `-`, else made; sent back
    {"time": ..., "level": "info", "logger": "ajuste.serving.requests", "message": "POST /classify 200",
     "request": "5f0c...", "client": "127.0.0.1", "method": "POST", "path": "/classify", "status": 200, "seconds": 0.02}

`path` is the page's name in the interface, never what was typed, and no line holds a text, a header or a query. Other
lines of the server have the id of the request that they are about. Run: `ajuste serve --log-json`.
"""

import json
import logging
import re
import time
import traceback
import uuid
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ajuste.serving.door.metrics import Metrics

ID = re.compile(rb"[\w.-]{1,64}", re.ASCII)

request_id: ContextVar[str] = ContextVar("request_id", default="")
log = logging.getLogger("ajuste.serving.requests")


class Ledger:
    """What stands before all else."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        own = given if ID.fullmatch(given) else uuid.uuid4().hex.encode()
        request_id.set(own.decode())
        began, status = time.monotonic(), 499           # of a client that goes before its answer

        async def answered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = message | {"headers": [*message.get("headers", []), (b"x-request-id", own)]}
            await send(message)

        try:
            await self.app(scope, receive, answered)
        finally:
            seconds = time.monotonic() - began
            path = getattr(scope.get("route"), "path", "other")
            self.metrics.ended(path, scope["method"], status, seconds)
            if log.isEnabledFor(logging.INFO):
                client = (scope.get("client") or ("",))[0]
                log.info("%s %s %d", scope["method"], path, status,
                         extra={"fields": {"client": client, "method": scope["method"], "path": path, "status": status,
                                           "seconds": round(seconds, 4)}})


class JsonLines(logging.Formatter):
    """A record as one line of JSON. Of an error its kind and its lines of code: its message may hold a text."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line: dict[str, Any] = {"time": at, "level": record.levelname.lower(), "logger": record.name,
                                "message": record.getMessage()}
        if known := request_id.get():
            line["request"] = known
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[0]:
            line["error"] = record.exc_info[0].__name__
            line["where"] = "".join(traceback.format_tb(record.exc_info[2]))
        return json.dumps(line, ensure_ascii=False)


def log_json(stream: Any = None) -> logging.Handler:
    """From now on the server's records, uvicorn's too, are JSON lines on `stream` (standard error)."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    for name in ("ajuste.serving", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
    log.setLevel(logging.INFO)
    return handler
