"""How this server says what is wrong: one JSON object, in the shape that the caller's path is used to.

    /v1/...     {"error": {"message": "...", "type": "...", "param": "...", "code": "..."}}, as OpenAI's clients read it
    others      {"error": "what is wrong and what to do"}

A fault of the request names the field, never the text.
"""

import logging

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from ajuste.serving.batches import Busy, Ending, Late
from ajuste.serving.jobs import BadRequest
from ajuste.serving.loading import RefusedModel, UnknownModel

log = logging.getLogger("ajuste.serving")

PATHS = ("there is POST /v1/chat/completions, POST /v1/completions, POST /v1/score, GET /v1/models, "
         "GET /v1/models/NAME, POST /classify, GET /models, GET /health, GET /livez, GET /readyz and GET /metrics")
CLASSIFY = 'the body is {"text": "..."} or {"texts": ["...", ...]}, optional "model"'
KINDS = {429: "rate_limit_error"}
CODES = {404: "not_found", 408: "too_slow", 413: "body_too_large", 415: "no_json"}


class Refusal(HTTPException):
    """An error with what OpenAI's shape says besides: which field (`param`) and a word for programs (`code`)."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None,
                 headers: dict[str, str] | None = None) -> None:
        super().__init__(status, message, headers)
        self.param, self.code = param, code


def refusal(error: Exception) -> Exception:
    """What the inference thread refused, as an HTTP error; anything else as it is (a fault of ours)."""
    if isinstance(error, UnknownModel):
        return Refusal(404, str(error), "model", "model_not_found")
    if isinstance(error, BadRequest):
        return Refusal(400, str(error), error.param, error.code)
    if isinstance(error, RefusedModel):
        return Refusal(503, str(error), "model", "model_refused", {"x-should-retry": "false"})
    if isinstance(error, Busy):
        return Refusal(429, str(error), None, "busy", {"Retry-After": str(error.seconds)})
    if isinstance(error, Late):
        return Refusal(504, str(error), None, "timeout")
    if isinstance(error, Ending):
        return Refusal(503, str(error), None, "ending", {"Retry-After": "5"})
    return error


def body(path: str, status: int, message: str, param: str | None = None, code: str | None = None) -> dict:
    """The JSON of an error for this path."""
    message, param = _utf8(message), param and _utf8(param)
    if not path.startswith("/v1/"):
        return {"error": message}
    kind = "server_error" if status >= 500 else KINDS.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code or CODES.get(status)}}


def _utf8(text: str) -> str:
    """The text without half a pair of surrogates, which no answer could hold: a request's JSON may name a field so."""
    return text.encode("utf-8", "backslashreplace").decode()


def our_fault(error: Exception) -> str:
    """What a caller is told about a fault of ours: its kind, and nothing that it may hold."""
    log.error("%s while answering", type(error).__name__)
    return f"the server failed ({type(error).__name__}); its log says more"


def install(app: FastAPI) -> None:
    """Every error of this app in these shapes."""

    @app.exception_handler(StarletteHTTPException)
    async def http_error(request: Request, error: StarletteHTTPException) -> JSONResponse:
        path = request.url.path
        message = f"no such page: {PATHS}" if error.detail == "Not Found" else str(error.detail)
        param, code = getattr(error, "param", None), getattr(error, "code", None)
        return JSONResponse(body(path, error.status_code, message, param, code), error.status_code,
                            headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def bad_request(request: Request, error: RequestValidationError) -> JSONResponse:
        path, first = request.url.path, error.errors()[0]
        openai = path.startswith("/v1/")
        kind = request.headers.get("content-type", "missing")
        if not kind.startswith("application/json"):
            message = f"the content-type is {kind[:80]}: send JSON as application/json"
            return JSONResponse(body(path, 415, message), 415)
        if first["type"] == "json_invalid":
            message = f"the body is no valid JSON: {first['ctx']['error']} at character {first['loc'][-1]}"
            return JSONResponse(body(path, 400, message, code="invalid_json"), 400)
        param = ".".join(str(part) for part in first["loc"] if part != "body") or None
        message, code = first["msg"].removeprefix("Value error, "), None
        if openai and first["type"] == "extra_forbidden":
            message, code = "this server has no such parameter: leave it out", "unsupported_parameter"
        elif first["type"] == "string_unicode":
            message = "this text holds half of a surrogate pair, which is no character: send it as valid Unicode"
        elif openai and first["type"] == "unsupported":
            param, code = ".".join(filter(None, (param, first["ctx"]["param"]))), "unsupported_parameter"
        message = f"{param}: {message}" if param else message
        message = message if openai else f"{message}; {CLASSIFY}"
        return JSONResponse(body(path, 400 if openai else 422, message, param, code), 400 if openai else 422)

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(body(request.url.path, 500, our_fault(error)), 500)
