"""What OpenAI's clients may send to /v1: which fields are taken, which change nothing, and which are refused, and why.

    taken      model, messages or prompt, max_tokens, max_completion_tokens, temperature, top_p, seed, stop, stream,
               stream_options.include_usage, n, logprobs, top_logprobs
    ignored    IGNORED: any value; NEUTRAL and Message: the values that ask for nothing (`tools: []`); null anywhere
    refused    everything else, by its name: what the server does not do is not passed over in silence

A fault is an error of pydantic, which ajuste/serving/errors.py words.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError

MAX_CHARS = 100_000
MAX_MESSAGES = 256
MAX_CHOICES = 16        # prompts x n: answers to one request, each of which is a row of the batch
MAX_TOP = 20            # alternatives a token, as OpenAI's chat has them; completions have at most 5

# what is for OpenAI's own service alone: it changes no answer
IGNORED = ("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
# parameters of OpenAI's interface that this server does not have, with the values that ask for nothing
NEUTRAL: dict[str, tuple] = {
    "best_of": (1,), "echo": (False,), "suffix": ("",), "store": (False,),
    "frequency_penalty": (0, 0.0), "presence_penalty": (0, 0.0), "logit_bias": ({},), "tools": ([],),
    "tool_choice": ("none", "auto"), "parallel_tool_calls": (False, True), "functions": ([],),
    "function_call": ("none", "auto"), "response_format": ({"type": "text"},), "service_tier": ("auto", "default"),
    "modalities": (["text"],), "reasoning_effort": ("none",), "verbosity": ("medium",),
}
NEUTRAL_IN_MESSAGE: dict[str, tuple] = {"tool_calls": ([],), "annotations": ([],), "refusal": ("",)}
WHY = {
    "tools": "this server calls no tools: it neither shows them to the model nor reads calls from its answer; describe "
             "them in a message, and leave `tools` out",
    "functions": "this server calls no functions: describe them in a message, and leave `functions` out",
    "tool_calls": "this server has no tools, so a turn that calls one cannot be shown to the model: write the call "
                  "into the content, and leave `tool_calls` out",
    "response_format": "this server does not constrain the answer to JSON or a schema: ask for JSON in a message, "
                       "check what comes, and leave `response_format` out",
    "store": "this server stores no answers: leave it out",
}

Content = Annotated[str, StringConstraints(max_length=MAX_CHARS)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=200)]


def without_neutral(given: dict[str, Any], neutral: dict[str, tuple]) -> dict[str, Any]:
    """The fields that are left when those that ask for nothing are gone. Raises PydanticCustomError for others."""
    for name, values in neutral.items():
        value = given.get(name)
        if value is not None and not any(value == one and type(value) is type(one) for one in values):
            why = WHY.get(name, "this server cannot do that: leave it out")
            raise PydanticCustomError("unsupported", "{why}", {"param": name, "why": why})
    return {key: value for key, value in given.items() if key not in neutral}


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
    """One turn. `developer` is OpenAI's newer word for `system`; `name` is not shown to the model."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content | list[Part]
    name: str = ""

    @model_validator(mode="before")
    @classmethod
    def only_what_is_shown(cls, given: Any) -> Any:
        return without_neutral(given, NEUTRAL_IN_MESSAGE) if isinstance(given, dict) else given

    def plain(self) -> dict[str, str]:
        """The turn as the chat template takes it."""
        role = "system" if self.role == "developer" else self.role
        if isinstance(self.content, str):
            return {"role": role, "content": self.content}
        return {"role": role, "content": "".join(part.text for part in self.content)}


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


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
    n: int = Field(1, ge=1, le=MAX_CHOICES)

    @model_validator(mode="before")
    @classmethod
    def only_what_there_is(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return without_neutral({key: value for key, value in given.items() if key not in IGNORED}, NEUTRAL)

    @field_validator("stop", mode="before")
    @classmethod
    def one_or_more(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given


class ChatQuestion(Question):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_TOP)

    @model_validator(mode="after")
    def top_of_something(self) -> "ChatQuestion":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("`top_logprobs` needs `logprobs: true`")
        return self

    def top(self) -> int | None:
        """How many alternatives a token are asked for; None if no log-probabilities are."""
        return self.top_logprobs if self.logprobs else None


class TextQuestion(Question):
    """The body of POST /v1/completions."""

    prompt: Annotated[list[Annotated[Content, Field(min_length=1)]], Field(min_length=1, max_length=MAX_CHOICES)]
    logprobs: int | None = Field(None, ge=0, le=5)

    @field_validator("prompt", mode="before")
    @classmethod
    def one_or_many(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given

    @model_validator(mode="after")
    def not_too_many(self) -> "TextQuestion":
        if len(self.prompt) * self.n > MAX_CHOICES:
            raise ValueError(f"{len(self.prompt)} prompts and n {self.n} are more than {MAX_CHOICES} answers: "
                             "send them in several requests")
        return self

    @field_validator("logprobs", mode="before")
    @classmethod
    def false_is_none(cls, given: Any) -> Any:
        return None if given is False else given

    def top(self) -> int | None:
        """How many alternatives a token are asked for; None if no log-probabilities are."""
        return self.logprobs
