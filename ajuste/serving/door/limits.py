"""What is refused before it is read: a body that is too large, and a request that calls this server by another name."""

from collections.abc import Sequence

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ajuste.serving import errors


class KnownHosts:
    """Answers 400 when the Host header is none of `hosts` ("*" allows all).

    A page in a browser can point a name of its own at 127.0.0.1 and then ask in the user's place (DNS rebinding); the
    Host header still holds that name.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "*" not in self.hosts:
            asked = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            name, _, port = asked.rpartition(":")
            if (name if port.isdigit() else asked) not in self.hosts:
                message = f"this server does not answer for host `{asked[:80]}`: call it {' or '.join(self.hosts)}"
                await JSONResponse(errors.body(scope["path"], 400, message), 400)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class BodyLimit:
    """Answers 413 when the body says that it is, or grows, larger than `max_bytes`."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        message = f"the body is larger than {self.max_bytes} bytes: send less at once, or in several requests"
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.max_bytes:
            await JSONResponse(errors.body(scope["path"], 413, message), 413)(scope, receive, send)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            part = await receive()
            size += len(part.get("body", b""))
            if size > self.max_bytes:
                raise HTTPException(413, message)       # the app, which is reading, makes the response
            return part

        await self.app(scope, counted, send)
