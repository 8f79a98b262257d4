"""Slow clients against a real server: half heads, half bodies, drops of bytes, ears that are shut, and too many."""

import asyncio
import contextlib
import json
import socket
import time

import pytest
from fastapi import FastAPI, Request
from starlette.responses import StreamingResponse

from ajuste.serving import errors
from ajuste.serving.door import connections
from tests.serving.conftest import running

HEAD = b"POST %s HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"


@pytest.fixture
def app(monkeypatch):
    """A page that reads its body, one that does not, and one that never stops talking; short times."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(connections, "BODY_SECONDS", 0.3)
    app = FastAPI()
    errors.install(app)

    @app.post("/reads")
    @app.post("/v1/reads")
    async def reads(request: Request):
        return {"size": len(await request.body())}

    @app.post("/does-not")
    async def does_not(request: Request):
        return {"size": -1}

    @app.get("/talks")
    async def talks():
        async def forever():
            while True:
                yield b"x" * 65_536
                await asyncio.sleep(0)

        return StreamingResponse(forever())

    return app


@pytest.fixture
def place(app):
    with running(app) as address:
        host, _, port = address.removeprefix("http://").partition(":")
        yield host, int(port)


@contextlib.contextmanager
def connected(place, *sent):
    with socket.create_connection(place, timeout=20) as connection:
        for part in sent:
            connection.sendall(part)
        yield connection


def rest(connection):
    """Status, body and whether the server closed; reads to the end."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65_536):
            data += part
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, body


@pytest.mark.parametrize("sent, status", [
    ([], 408), ([b"POST /reads HT"], 408), ([HEAD % (b"/reads", 10)], 408), ([HEAD % (b"/reads", 10), b"12345"], 408),
    ([HEAD % (b"/does-not", 10), b"12345"], 200),
], ids=["nothing", "half a head", "no body", "half a body", "a body that nobody reads"])
def test_who_does_not_go_on_is_ended(app, place, sent, status):
    with connected(place, *sent) as connection:
        found, body = rest(connection)
        assert found == status
        if status == 408:
            assert "too slowly" in json.loads(body)["error"]
    assert app.state.connections.slow == 1


def test_a_byte_now_and_then_does_not_renew_the_time(place):
    with connected(place, HEAD % (b"/v1/reads", 1000)) as connection:
        began = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while time.monotonic() - began < 10:
                connection.sendall(b"1")
                time.sleep(0.05)
        assert time.monotonic() - began < 10
        status, body = rest(connection)
        assert status in (0, 408)       # 0: the kernel threw the answer away, as bytes came after the end
        assert not status or json.loads(body)["error"]["code"] == "too_slow"


def test_the_times_are_of_one_request_not_of_a_connection(app, place, monkeypatch):
    with connected(place) as connection:
        for size in (3, 70_000, 5):
            connection.sendall(HEAD % (b"/reads", size) + b"1" * size)
            answer = b""
            while b'{"size"' not in answer:
                answer += connection.recv(4096)
            assert b"200 OK" in answer and f'{{"size":{size}}}'.encode() in answer
            time.sleep(0.2)
    two = (HEAD % (b"/reads", 3) + b"123") * 2
    with connected(place, two, HEAD % (b"/reads", 9)) as connection:        # pipelined, then one that stops
        found = b""
        while part := connection.recv(4096):
            found += part
        assert found.count(b"200 OK") == 2 and found.count(b"HTTP/1.1 408") == 1
    assert app.state.connections.slow == 1


def test_a_client_that_does_not_listen_is_ended(app, place, monkeypatch):
    monkeypatch.setattr(connections, "LISTEN_SECONDS", 0.3)
    with connected(place, b"GET /talks HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"):
        deadline = time.monotonic() + 20
        while app.state.connections.slow == 0:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert not app.state.connections.open


def test_one_more_connection_takes_the_place_of_the_slowest_or_is_told_to_come_again(app, place, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 20)
    monkeypatch.setattr(connections, "BODY_SECONDS", 20)
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 3)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connected(place, HEAD % (b"/reads", 9))) for _ in range(3)]
        while len(app.state.connections.open) < 3:
            time.sleep(0.002)
        with connected(place, HEAD % (b"/reads", 1) + b"1") as connection:
            assert rest(connection)[0] == 503               # the others may still be on their way
        monkeypatch.setattr(connections, "GRACE_SECONDS", 0.0)
        with connected(place, HEAD % (b"/reads", 1) + b"1") as connection:
            assert b"200 OK" in connection.recv(4096)
        assert rest(slow[0])[0] == 408 and app.state.connections.slow == 1
        for one in slow[1:]:
            one.sendall(b"123456789")
            assert b"200 OK" in one.recv(4096)


def test_many_half_bodies_leave_room_for_who_asks(app, place, monkeypatch):
    """The attack that was seen: all were accepted, and stayed."""
    monkeypatch.setattr(connections, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 64)
    monkeypatch.setattr(connections, "BODY_SECONDS", 20)
    with contextlib.ExitStack() as stack:
        for _ in range(400):        # the test's own limit of open files
            with contextlib.suppress(ConnectionError):
                stack.enter_context(connected(place, HEAD % (b"/reads", 100)))
        with connected(place, HEAD % (b"/reads", 1) + b"1") as connection:
            assert b"200 OK" in connection.recv(4096)
        assert len(app.state.connections.open) <= 64
