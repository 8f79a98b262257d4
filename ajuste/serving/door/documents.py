"""What GET /openapi.json says: every status that a page gives, and the schema of what comes with it.

FastAPI adds its own 422 to each page with a body; this server words such faults itself (ajuste/serving/errors.py), 400
below /v1 and 422 elsewhere, so its entry is taken out again.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field

WHY = {
    400: "The request is wrong: the message says where.",
    404: "No such model, or one that does something else.",
    408: "The request came too slowly.",
    413: "The body is too large.",
    415: "The body is not called application/json.",
    422: "A field is wrong: the message says which.",
    429: "Too much waits already, or this client had too many versions loaded: Retry-After says when to ask again.",
    500: "A fault of the server.",
    503: "The model is refused, or the server ends or is full.",
    504: "There was no answer in time.",
}
HEADERS = {
    "x-request-id": {"description": "The request's own, if it sent one, or a new one: logs name it.",
                     "schema": {"type": "string"}},
}
RETRY = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}


class Wrong(BaseModel):
    """An error beside /v1."""

    model_config = ConfigDict(extra="forbid")
    error: str = Field(description="What is wrong and what to do.")


class OpenAIError(BaseModel):
    """What stands in an error below /v1."""

    model_config = ConfigDict(extra="forbid")
    message: str
    type: str
    param: str | None = Field(description="The field.")
    code: str | None = Field(description="A word for programs.")


class OpenAIWrong(BaseModel):
    """An error below /v1, in OpenAI's shape."""

    model_config = ConfigDict(extra="forbid")
    error: OpenAIError


def errors_of(path: str, *statuses: int) -> dict[int, dict[str, Any]]:
    """The errors of a page, as FastAPI's `responses` takes them."""
    model = OpenAIWrong if path.startswith("/v1/") else Wrong
    return {status: {"model": model, "description": WHY[status], "headers": RETRY if status == 429 else {}}
            for status in statuses}


def describe(app: FastAPI) -> None:
    """Let the app describe itself; once all its pages are there."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            for operation in (one for path in made["paths"].values() for one in path.values()):
                answers = operation["responses"]
                if "HTTPValidationError" in str(answers.get("422")):
                    del answers["422"]
                for answer in answers.values():
                    answer["headers"] = answer.get("headers", {}) | HEADERS
            for unused in ("HTTPValidationError", "ValidationError"):
                made["components"]["schemas"].pop(unused, None)
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = openapi
