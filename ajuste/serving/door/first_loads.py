"""A request waits here for its model: at once where it is loaded, else until it is, beside the inference thread.

Two bounds: MAX_FIRST requests wait for loads, over all clients; and a client may have MAX_LOADS versions that nobody
serves (NAME/VERSION, not loaded) brought into memory in LOAD_SECONDS, since each of them may push out one that others
use. Past either: 429, with the time to wait.
"""

import asyncio
import time
from collections import Counter, OrderedDict, deque

from fastapi import Request

from ajuste.serving import errors
from ajuste.serving.batches import Busy
from ajuste.serving.loading import Served
from ajuste.serving.models import Models

MAX_FIRST = 32
MAX_LOADS, LOAD_SECONDS = 8, 60.0
MAX_CLIENTS = 1024              # whose loads are remembered


class FirstLoads:
    """Awaited before a request is answered; gives its model or raises an HTTP error. For the event loop's thread."""

    def __init__(self, models: Models):
        self._models, self._waiting = models, 0
        self._under_way: Counter[str] = Counter()       # requests that wait for each reference
        self._loads: OrderedDict[str, deque[float]] = OrderedDict()         # by client: when, the latest last

    async def __call__(self, request: Request, kind: str, reference: str) -> Served:
        """The model of that reference; "" is the default of the kind."""
        try:
            if self._models.is_ready(reference, kind):
                return self._models.get(reference or self._models.default(kind))
            if self._waiting >= MAX_FIRST:
                raise Busy(f"{self._waiting} requests wait for models to load: try again in a moment", 2)
            if self._costs(reference):
                await asyncio.to_thread(self._models.find, reference)       # what does not exist costs nothing
                if self._costs(reference):
                    self._count(request.client.host if request.client else "")
            return await self._load(kind, reference)
        except Exception as error:
            raise errors.refusal(error) from None

    def _costs(self, reference: str) -> bool:
        return "/" in reference and not self._under_way[reference] and self._models.needs_load(reference)

    async def _load(self, kind: str, reference: str) -> Served:
        """A load goes on when its client goes away, and counts until it ends."""

        def ended(load: asyncio.Task) -> None:
            self._waiting -= 1
            self._under_way -= Counter([reference])     # and forgets what is 0
            load.exception()                # looked at, so that asyncio does not complain that nobody does

        self._waiting += 1
        self._under_way[reference] += 1
        load = asyncio.ensure_future(asyncio.to_thread(
            lambda: self._models.get(reference or self._models.default(kind))))
        load.add_done_callback(ended)
        return await asyncio.shield(load)

    def _count(self, client: str) -> None:
        """Raise Busy if this client has had as many versions loaded as it may."""
        now, times = time.monotonic(), self._loads.setdefault(client, deque())
        self._loads.move_to_end(client)
        while times and now - times[0] > LOAD_SECONDS:
            times.popleft()
        if len(times) >= MAX_LOADS:
            wait = int(times[0] + LOAD_SECONDS - now) + 1
            raise Busy(f"{MAX_LOADS} versions that nobody serves were loaded for you within {LOAD_SECONDS:.0f} s: "
                       f"ask for this one in {wait} s", wait)
        times.append(now)
        while len(self._loads) > MAX_CLIENTS:
            self._loads.popitem(last=False)
