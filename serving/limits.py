"""A limit on the size of a request's body, held while it arrives: a large body is refused without being kept."""

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """Answers 413 when the body says that it is, or grows, larger than `max_bytes`."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        message = f"the body is larger than {self.max_bytes} bytes: send the texts in several requests"
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.max_bytes:
            await JSONResponse({"error": message}, 413)(scope, receive, send)
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
