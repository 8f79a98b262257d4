"""POST /classify: texts in; a label, its probability and those of all labels out, and the version that gave them."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from ajuste.serving.door.documents import errors_of
from ajuste.serving.door.patience import Gone, Texts
from ajuste.serving.loading import Served

MAX_TEXTS = 256
MAX_CHARS = 20_000

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


def routes(ask: Callable[..., Any], keep: Callable[..., None]) -> APIRouter:
    """The page. `ask(request, what, reference, items, sizes)` awaits (served, probabilities [N][C], rows) or raises an
    HTTP error or Gone; `keep` is told what was labelled, and how."""
    router = APIRouter()
    what = Texts("classifier", lambda served, texts, _: served.token_ids(texts), check=lambda rows: None)

    @router.post("/classify", response_model=Answers, responses=errors_of("/classify", 400, 404, 413, 415, 422, 429,
                                                                          500, 503, 504))
    async def classify(question: Question, request: Request) -> Any:
        texts = question.all_texts()
        try:
            served, rows, _ = await ask(request, what, question.model or "", texts, [len(text) for text in texts])
        except Gone:
            return Response(status_code=499)        # nobody reads it
        results = answers(served.card["labels"], rows)
        for text, result in zip(texts, results, strict=True):
            keep(served, text, result.label, result.probability)
        return Answers(**identity(served), results=results)

    return router
