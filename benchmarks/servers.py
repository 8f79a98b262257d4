"""What every measurement over HTTP needs: a server, mostly as a process of its own, and clients that ask it.

    with server(command, port, log): ...           started, awaited at `health`, ended with all that it started
    with in_thread(server) as port: ...            one of this process
    rate, seconds = load(port, 8, once, seconds=5)  eight clients, each on a connection of its own, one request after
                                                    the other: units a second of them all, seconds of each request

Raises DataError where a server does not start, RuntimeError where one answers something else than was asked for.
"""

import contextlib
import http.client
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ajuste.cli.processes import answers, start, stop, wait

if TYPE_CHECKING:
    import uvicorn

ROOT = Path(__file__).resolve().parents[1]
QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1",
         "MLFLOW_DISABLE_TELEMETRY": "true", "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
HEADERS = {"content-type": "application/json"}
Once = Callable[[http.client.HTTPConnection, int], int]  # (connection, number of the request) -> units of its answer


@contextlib.contextmanager
def server(command: Sequence[str], port: int, log: Path, health: str = "/health", cwd: Path = ROOT,
           environment: Mapping[str, str] | None = None) -> Iterator[None]:  # fmt: skip
    """A running server on 127.0.0.1. Raises DataError, with the log's last line, if it does not start."""
    process = start(command, log, {**os.environ, **QUIET, **(environment or {})}, cwd)
    try:
        wait(command[-1], process, lambda: answers(f"http://127.0.0.1:{port}{health}"), log)
        yield
    finally:
        stop(process.pid, seconds=30)


@contextlib.contextmanager
def in_thread(app_server: "uvicorn.Server") -> Iterator[int]:
    """That server, of port 0, in a thread of this process; gives the port that it got."""
    thread = threading.Thread(target=app_server.run, daemon=True)
    thread.start()
    while not app_server.started:
        if not thread.is_alive():
            raise RuntimeError("the server did not start")
        time.sleep(0.05)
    try:
        yield app_server.servers[0].sockets[0].getsockname()[1]
    finally:
        app_server.should_exit = True
        thread.join(20)


def ask(connection: http.client.HTTPConnection, path: str, body: dict) -> dict:
    """The answer's JSON. Raises RuntimeError for any other status than 200."""
    connection.request("POST", path, json.dumps(body), HEADERS)
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path} answered {answer.status}: {content[:300]!r}")
    return json.loads(content)


def load(port: int, clients: int, once: Once, seconds: float | None = None, requests: int | None = None
         ) -> tuple[float, list[float]]:  # fmt: skip
    """Units a second of so many clients together, and the seconds of each request; for so long, or so many of them.

    Ends at the first request that fails, with its error as a RuntimeError.
    """
    numbers = iter(range(requests)) if requests is not None else itertools.count()
    stop_at = time.perf_counter() + seconds if seconds is not None else float("inf")
    units, latencies, wrong, lock = [], [], [], threading.Lock()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        while time.perf_counter() < stop_at and not wrong:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            asked = time.perf_counter()
            try:
                got = once(connection, number)
            except (OSError, ValueError, KeyError, RuntimeError, http.client.HTTPException) as error:
                wrong.append(error)
                return
            with lock:
                units.append(got)
                latencies.append(time.perf_counter() - asked)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise RuntimeError(f"a client of {clients} failed: {wrong[0]!r}")
    return sum(units) / (time.perf_counter() - began), latencies
