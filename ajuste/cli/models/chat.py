"""`ajuste chat`: a conversation in the terminal, with a model of the registry or with a running server.

The model's words are printed as they come. Lines are read from the terminal or from a pipe:

    echo "Write a haiku about rain." | ajuste chat --temperature 0
"""

import http.client
import json
import sys
from collections.abc import Callable, Iterator
from typing import Annotated
from urllib.parse import urlsplit

import typer

from ajuste.cli.models.names import errors_told, open_models

HELP = "/reset forgets the conversation, /quit ends it, Ctrl-C stops an answer"
Message = dict[str, str]
Answer = Callable[[list[Message]], Iterator[str]]       # messages -> pieces of text; raises ValueError


def command(
    name: Annotated[str | None, typer.Argument(help="NAME, NAME@ALIAS or NAME/VERSION; absent: the assistant.")] = None,
    url: Annotated[str, typer.Option(help="Ask this running server, as http://127.0.0.1:8000.")] = "",
    system: Annotated[str, typer.Option(help="What the model is told before the conversation.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 always takes the likeliest token.")] = 0.7,
    seed: Annotated[int | None, typer.Option(help="The same seed and conversation give the same answer.")] = None,
) -> None:
    """Talk with the assistant.

    Examples:  ajuste chat   |   ajuste chat assistant@challenger --temperature 0   |   ajuste chat --url
               http://127.0.0.1:8000
    """
    settings = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    answer, who = remote(url, name or "", settings) if url else local(name or "", settings)
    terminal = sys.stdin.isatty()
    if terminal:
        import readline  # noqa: F401  # gives input() a history and keys

        typer.echo(f"{who}. {HELP}.", err=True)
    start = [{"role": "system", "content": system}] if system else []
    messages, failed = list(start), False
    for line in asked(terminal):
        if line == "/quit":
            break
        if line == "/reset":
            messages = list(start)
            continue
        if line.startswith("/"):
            typer.echo(f"no command `{line.split()[0]}`: {HELP}", err=True)
            continue
        said, error = speak(answer([*messages, {"role": "user", "content": line}]))
        if error:
            failed = True
            typer.echo(f"error: {error}", err=True)
        else:
            messages += [{"role": "user", "content": line}, {"role": "assistant", "content": said}]
    if failed and not terminal:
        raise typer.Exit(1)


def asked(terminal: bool) -> Iterator[str]:
    """The lines that are not empty, to the end of the input."""
    while True:
        try:
            line = input("> ") if terminal else sys.stdin.readline()
        except (EOFError, KeyboardInterrupt):
            typer.echo("")
            return
        if not line and not terminal:
            return
        if line.strip():
            yield line.strip()


def speak(pieces: Iterator[str]) -> tuple[str, str]:
    """Print an answer while it comes; gives its text and what went wrong, "" if nothing did."""
    said, error = [], ""
    try:
        for piece in pieces:
            said.append(piece)
            # a model's control characters must not move the cursor or set the terminal's title
            print("".join(c for c in piece if c.isprintable() or c in "\n\t"), end="", flush=True)
    except ValueError as wrong:
        error = str(wrong)
    except KeyboardInterrupt:
        pieces.close()                                  # what was said so far stays in the conversation
    if said or not error:
        print(flush=True)
    return "".join(said), error


def local(reference: str, settings: dict) -> tuple[Answer, str]:
    """A model of the registry in this process, and what it is. Raises UsageError or DataError."""
    from ajuste.cli.project.ui_address import working
    from ajuste.core.errors import UsageError

    with working("loading"):
        from ajuste.serving.batches import Busy
        from ajuste.serving.generation import Generation
        from ajuste.serving.jobs import BadRequest, Finished, Job
        from ajuste.serving.loading import RefusedModel, UnknownModel

        models = open_models()
        with errors_told():
            reference = reference or models.default("decoder")
            served = models.get(reference)
        if served.kind != "decoder":
            raise UsageError(f"`{reference}` writes no text: `ajuste predict` asks it")
    generation = Generation(models)

    def answer(messages: list[Message]) -> Iterator[str]:
        events: list = []
        job = Job(reference, messages, events.append, **settings)
        generation.submit(job)
        try:
            while True:
                while events:
                    event = events.pop(0)
                    if isinstance(event, Finished):
                        return
                    if isinstance(event, (BadRequest, Busy, UnknownModel, RefusedModel)):
                        raise ValueError(str(event))
                    if isinstance(event, Exception):
                        raise event
                    if isinstance(event, str):
                        yield event
                generation.step()
        finally:
            job.cancelled = True
            generation.step()                           # lets the row leave

    return answer, f"{served.name} version {served.version} ({served.strategy}), base {served.card['base']['id']}"


def remote(url: str, reference: str, settings: dict) -> tuple[Answer, str]:
    """A model behind a running server's /v1/chat/completions. Raises UsageError for what is no address."""
    from ajuste.core.errors import UsageError

    try:
        address = urlsplit(url)
        kind = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}[address.scheme]
        host, port = address.hostname or "", address.port
    except (ValueError, KeyError):
        raise UsageError(f"`{url}` is no server's address: write it as http://127.0.0.1:8000") from None
    path = f"{address.path.rstrip('/').removesuffix('/v1')}/v1/chat/completions"
    body = {key: value for key, value in settings.items() if value is not None} | {"stream": True}
    if reference:
        body["model"] = reference

    def answer(messages: list[Message]) -> Iterator[str]:
        connection = kind(host, port, timeout=600)
        try:
            connection.request("POST", path, json.dumps(body | {"messages": messages}),
                               {"content-type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise ValueError(_message(response.read(100_000), response.status))
            for line in response:
                if line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise ValueError(event["error"]["message"])
                    yield event["choices"][0]["delta"].get("content") or ""
        except (OSError, http.client.HTTPException) as error:
            raise ValueError(f"{url} does not answer ({error}): is `ajuste serve` running?") from None
        finally:
            connection.close()

    return answer, f"{reference or 'the assistant'} at {url}"


def _message(content: bytes, status: int) -> str:
    try:
        return json.loads(content)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return f"the server answers with status {status}: is it `ajuste serve`?"
