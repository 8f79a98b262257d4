"""How long a request may take, and who still waits for it: the deadline, the client that goes away, the tokenizing.

    within(request, work)   the work's result; 504 after MAX_SECONDS; the work is cancelled when the client is gone
    Texts                   a place in the queue, tokenizing in slices, the rows' results: one request of many texts

Tokenizing has a thread of its own, since it is neither the inference thread's work nor the event loop's. It is one: a
tokenizer's settings are not safe among threads. Requests take turns there by slices of SLICE_CHARS characters, so that
a long one holds nobody up.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from ajuste.serving import errors
from ajuste.serving.batches import Batcher, Late
from ajuste.serving.loading import Served

MAX_SECONDS = 30.0          # of a request for labels or scores, from its arrival to its answer
SLICE_CHARS = 32_768
CHARS_A_TOKEN = 3           # about, for the place in the queue; the tokens count from when they are known

Encode = Callable[[Served, Sequence, int], list[list[int]]]     # items of the request, number of the first -> rows


class Gone(Exception):
    """The client went away."""


async def gone(request: Request) -> None:
    """Return when the client has gone away. The request's body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def within(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """The result of `work`, or its error as an HTTP error. Raises Gone, and errors.Refusal with status 504; the work is
    then cancelled."""
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone(request))
    try:
        await asyncio.wait({working, watching}, timeout=MAX_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if watching.done():
            raise Gone
        raise Late(f"no answer within {MAX_SECONDS:.0f} s: send fewer texts at once, or try again later")
    except Gone:
        raise
    except Exception as error:
        raise errors.refusal(error) from None
    finally:
        working.cancel()
        watching.cancel()


class Tokenizing:
    """The thread that tokenizes."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "tokenizing")

    def run(self, work: Callable[..., Any], *arguments: Any) -> Awaitable[Any]:
        """Await what `work` returns there."""
        return asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    def close(self) -> None:
        """End it; what waits is not done."""
        self._pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class Texts:
    """What a page asks of one kind of model: `sizes` are the characters of its items, `check` looks at all rows."""

    kind: str
    encode: Encode
    check: Callable[[list[list[int]]], None]

    async def ask(
        self, served: Served, items: Sequence, sizes: Sequence[int], batcher: Batcher, tokenizing: Tokenizing
    ) -> tuple[list, list[list[int]]]:
        """What the model makes of each item, and the items' rows of token ids. Raises what `encode` and `check` do,
        Busy and Ending."""
        served.must_be(self.kind)
        most = served.card["max_tokens"] if self.kind == "classifier" else served.context
        job = batcher.open(served, sum(min(size // CHARS_A_TOKEN + 2, most) for size in sizes))
        try:
            rows: list[list[int]] = []
            for part in _slices(items, sizes):
                rows += await tokenizing.run(self.encode, served, part, len(rows))
            self.check(rows)
            return await asyncio.wrap_future(batcher.submit(job, rows)), rows
        finally:
            batcher.drop(job)


def _slices(items: Sequence, sizes: Sequence[int]) -> Iterator[Sequence]:
    """The items, in their order, in parts of at most SLICE_CHARS characters or of one item."""
    begin = total = 0
    for i, size in enumerate(sizes):
        if i > begin and total + size > SLICE_CHARS:
            yield items[begin:i]
            begin, total = i, 0
        total += size
    yield items[begin:]
