"""`ajuste serve`: an HTTP server on loopback that answers with what the registry's aliases name."""

import os
import re
import socket
from contextlib import suppress
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from ajuste.cli.models.names import errors_told, open_models

if TYPE_CHECKING:
    from ajuste.serving.guard import Guard
    from ajuste.serving.loading import Place, Served
    from ajuste.serving.models import Models


PAGES = {"classifier": "POST /classify", "decoder": "POST /v1/chat/completions", "reward": "POST /v1/score"}


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def command(
    names: Annotated[list[str] | None, typer.Argument(help="NAME, NAME@ALIAS or NAME/VERSION; absent: all.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; all but loopback is open to others.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    dtype: Annotated[Dtype, typer.Option(help="Arithmetic of the answers; what the gate measured is float32 unless "
                                              "`compute.dtype` says otherwise.")] = Dtype.float32,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, or auto: a GPU where there is one.")] = "cpu",
    keep_gb: Annotated[float | None, typer.Option(
        min=0.001, help="GB of weights that stay in memory; absent: half of the device's.")] = None,
    log_requests: Annotated[bool, typer.Option(
        "--log-requests", help="Keep the texts, redacted, in .requests/ for `ajuste drift`.")] = False,
    log_json: Annotated[bool, typer.Option(
        "--log-json", help="Log as JSON lines on standard error: one a request, without its texts.")] = False,
) -> None:
    """Serve registered models: classifiers label texts, assistants answer as OpenAI's API does.

    Examples:  ajuste serve   |   ajuste serve reviews-classifier@challenger --port 9000

    ajuste serve assistant --device cuda --dtype bfloat16

    curl -s localhost:8000/classify -H 'content-type: application/json' -d '{"text": "A warm, funny film."}'

    ajuste chat --url http://127.0.0.1:8000
    """
    from ajuste.core.home import home

    listening = listen(host, port)
    # torch's threads must not spin while they wait: with other work on the same cores that made answers 4 times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")    # one thread tokenizes, the other cores compute
    from rich.console import Console

    with Console(stderr=True).status("loading"):
        from ajuste.serving.app import make_app
        from ajuste.serving.door import connections, ledger
        from ajuste.serving.log.requests import RequestLog
        from ajuste.tracking.registry import registry

        guard, filters = opened_guard()
        allowed, asked = chosen(names, registry.names())
        models = open_models(allowed, asked, place_of(dtype, device), keep_gb and int(keep_gb * 1e9))
        load(models, asked, bool(names))
        there = "".join(f"{page}, " for kind, page in PAGES.items() if models.of_kind(kind))
    address, number = listening.getsockname()[:2]
    loopback = address.startswith("127.") or address == "::1"
    if not loopback:
        typer.echo(f"warning: {address} is no loopback address: whoever reaches it can ask", err=True)
    typer.echo(f"listening on http://{address}:{number}  ({there}GET /models, GET /health; Ctrl-C ends it)")
    requests = RequestLog(home() / ".requests") if log_requests else None
    if requests:
        typer.echo(f"texts are kept, redacted, in {home() / '.requests'}", err=True)
    if guard:
        typer.echo(f"filters (policy.yaml): {filters}", err=True)
    app = make_app(models, ["127.0.0.1", "localhost", "[::1]"] if loopback else ["*"], requests, guard)
    if log_json:
        ledger.log_json()
    with suppress(KeyboardInterrupt):
        connections.run(app, listening, **({"log_config": None} if log_json else {}))
    typer.echo("stopped")


def load(models: "Models", asked: list[str], named: bool) -> None:
    """Load what is asked for, and say which version answers. A model that is not to be had ends the command with an
    error if it was `named` on the command line or if there is no other; else it is a warning."""
    from ajuste.serving.loading import RefusedModel, UnknownModel

    for name in asked:
        try:
            typer.echo(f"{name}: {described(models.get(name), name)}")
        except (UnknownModel, RefusedModel) as error:
            if named or (name == asked[-1] and not models.loaded()):
                with errors_told():
                    raise
            typer.echo(f"warning: {name} is not served: {error}", err=True)


def place_of(dtype: Dtype, device: str) -> "Place":
    """Where the weights stand, and their arithmetic. Raises UsageError for a device that is not there."""
    import torch

    from ajuste.core.errors import UsageError
    from ajuste.serving.loading import Place

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UsageError(f"no device `{device}`: --device takes cpu, cuda, cuda:NUMBER or auto")
    there = torch.cuda.device_count()
    if device != "cpu" and int(device.partition(":")[2] or 0) >= there:
        raise UsageError(f"no device `{device}`: torch sees {there} GPUs; --device cpu needs none")
    return Place(getattr(torch, dtype), device)


def opened_guard() -> "tuple[Guard | None, str]":
    """The filters that policy.yaml asks for, and what they do, in a line; none where a folder has no policy.yaml.
    Raises UsageError or DataError for a section that is missing or wrong."""
    from ajuste.judging.policy import POLICY, policy
    from ajuste.rows.filters.config import FilterConfig

    config = policy("filters", FilterConfig) if POLICY.exists() else None
    if config is None or not config.kinds():
        return None, ""
    from ajuste.serving.guard import Guard

    return Guard(config), config.told()


def chosen(names: list[str] | None, registered: list[str]) -> tuple[list[str], list[str]]:
    """(the registered names that may be asked for, the references that are loaded at the start). Adapters are loaded
    when somebody asks. Raises UsageError for a name that is not registered."""
    from ajuste.core.errors import UsageError

    known = sorted(registered, key=lambda name: (name.endswith("-adapter"), name))
    if not known:
        raise UsageError("nothing is registered yet: `ajuste run` trains and registers the first models")
    asked = names or [name for name in known if not name.endswith("-adapter")] or known
    allowed = list(dict.fromkeys(name.partition("@")[0].partition("/")[0] for name in names or known))
    unknown = [name for name in allowed if name not in known]
    if unknown:
        raise UsageError(f"no model `{unknown[0]}` is registered: there is {', '.join(known)}")
    return allowed, asked


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, taken before anything is loaded. Raises UsageError when it cannot be had."""
    from ajuste.core.errors import UsageError

    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=256)
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]     # Python adds the address once more
        raise UsageError(f"cannot listen on {host} port {port} ({reason}): "
                         "end what uses it or choose another with --port") from None


def described(served: "Served", reference: str) -> str:
    """Which version answers, and why that one."""
    why = served.alias or "by its number"
    if "@" not in reference and served.alias == "challenger":
        why = "challenger, because no champion is set"
    return f"version {served.version} ({served.strategy}), {why}"
