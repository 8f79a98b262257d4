"""What uvicorn does not limit: how many connections there are, and how long one may take to ask or to listen.

    head     HEAD_SECONDS from the first byte, or from the connection, to the end of the request's head
    body     BODY_SECONDS from there to the end of its body, read or not
    listen   LISTEN_SECONDS in which nothing of an answer can be sent to a client
    number   MAX_CONNECTIONS; one more takes the place of the one that has been asking for longest, GRACE_SECONDS or
             more; if there is none, it gets 503

A request that comes too slowly gets 408. The times are from beginning to end: a byte now and then does not renew them.
"""

import asyncio
import json
import time
from socket import socket
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ajuste.serving import errors

HEAD_SECONDS = 10.0
BODY_SECONDS = 30.0
LISTEN_SECONDS = 30.0
GRACE_SECONDS = 1.0
MAX_CONNECTIONS = 512


class Counted:
    """How many connections were ended for being slow, and how many there are."""

    def __init__(self) -> None:
        self.slow, self.open = 0, set()


class Patient(H11Protocol):
    """uvicorn's protocol on h11, one object a connection, with these limits."""

    counted: Counted                        # of the server, as `server_of` makes it

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._phase, self._request, self._since = "", None, 0.0         # what is awaited, of which request, since when
        self._timer, self._deaf = None, None
        if len(self.counted.open) >= MAX_CONNECTIONS and not self._take_a_place():
            self._end(503, "there are too many connections: try again later")
            return
        self.counted.open.add(self)
        self._watch("head")

    def connection_lost(self, exc: Exception | None) -> None:
        self.counted.open.discard(self)
        self._watch("")
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch(self._now())

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch(self._now())

    def pause_writing(self) -> None:
        super().pause_writing()
        self._deaf = self.loop.call_later(LISTEN_SECONDS, self._not_listening)

    def resume_writing(self) -> None:
        if self._deaf:
            self._deaf.cancel()
            self._deaf = None
        if self.flow is not None:
            super().resume_writing()

    # --- ours -------------------------------------------------------------------------------------------------------

    def _now(self) -> str:
        """What is awaited of the client: the rest of a `head`, of a `body`, or nothing."""
        if self.transport.is_closing():
            return ""
        their = self.conn.their_state
        if their is h11.SEND_BODY:
            return "body"
        return "head" if their is h11.IDLE and self.conn.trailing_data[0] else ""

    def _watch(self, phase: str) -> None:
        """The clock of a phase begins when it does, and ends with it."""
        request = self.cycle if phase == "body" else None
        if phase == self._phase and request is self._request:
            return
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self._phase, self._request, self._since = phase, request, time.monotonic()
        if phase:
            self._timer = self.loop.call_later(HEAD_SECONDS if phase == "head" else BODY_SECONDS, self._too_slow)

    def _too_slow(self) -> None:
        self.counted.slow += 1
        self._end(408, "the request came too slowly: send it at once")

    def _not_listening(self) -> None:
        self.counted.slow += 1
        self.transport.abort()

    def _take_a_place(self) -> bool:
        """End the connection that has been asking for longest, if one does for GRACE_SECONDS."""
        asking = [one for one in self.counted.open if one._phase]
        slowest = min(asking, key=lambda one: one._since, default=None)
        if slowest is None or time.monotonic() - slowest._since < GRACE_SECONDS:
            return False
        slowest._too_slow()
        self.counted.open.discard(slowest)
        return True

    def _end(self, status: int, why: str) -> None:
        """Answer, if no answer was begun, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            body = json.dumps(errors.body(self.scope["path"] if self.cycle else "", status, why)).encode()
            headers = [("content-type", "application/json"), ("content-length", str(len(body))),
                       ("connection", "close"), *([("retry-after", "5")] if status == 503 else [])]
            for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        if self.cycle and not self.cycle.response_complete:
            self.cycle.disconnected = True              # the page that waits for the body ends
            self.cycle.message_event.set()
        self._watch("")
        self.transport.close()


def server_of(app: Any, **how: Any) -> uvicorn.Server:
    """uvicorn for this app, with these limits and no access log; `how` as uvicorn.Config takes it."""
    counted = app.state.connections = Counted()
    # no proxy's headers: whoever can reach the port could name itself anything
    how = {"log_level": "warning", "access_log": False, "timeout_graceful_shutdown": 5, "proxy_headers": False,
           "ws": "none"} | how
    return uvicorn.Server(uvicorn.Config(app, http=type("Patient", (Patient,), {"counted": counted}), **how))


def run(app: Any, listening: socket, **how: Any) -> None:
    """Serve on this socket until a signal ends it."""
    server_of(app, **how).run(sockets=[listening])
