"""One inference thread and its queue: texts that wait for the same model are answered in one batch.

While a batch is computed, new requests queue up; the next batch takes all of those that name the same model as the
oldest, up to `max_rows` texts. Nothing ever waits for a batch to fill, so a lone request pays no delay. One thread does
all the computing: torch uses the cores inside a batch, and the models need no locks. Where texts are generated too
(ajuste/serving/generation.py), the thread takes turns: one batch of texts, then one token of every generation.
"""

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol


class Busy(RuntimeError):
    """Too many requests are waiting."""


class Texts(NamedTuple):
    reference: Hashable                     # what may stand in one batch
    texts: Sequence
    future: Future


class Stepwise(Protocol):
    """Work that the thread does a step at a time, between its batches: ajuste.serving.generation.Generation."""

    def submit(self, job: Any) -> None: ...
    def active(self) -> bool: ...
    def step(self) -> None: ...
    def close(self) -> None: ...


class Batcher:
    """Runs `work(reference, texts) -> (who, rows)` in one thread; `rows` has one entry a text, in their order."""

    def __init__(
        self, work: Callable[[Any, list], tuple[Any, Sequence]], max_rows: int = 64, max_waiting: int = 128,
        generation: Stepwise | None = None,
    ) -> None:
        self._generation = generation
        self._work, self._max_rows, self._max_waiting = work, max_rows, max_waiting
        self._jobs: deque[Texts] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def submit(self, reference: Hashable, texts: Sequence) -> Future:
        """Queue the texts; the future gives (who, rows of these texts). Raises Busy when too many requests wait."""
        future: Future = Future()
        with self._changed:
            if self._closed or len(self._jobs) >= self._max_waiting:
                raise Busy(f"{len(self._jobs)} requests are waiting: try again in a moment")
            self._jobs.append(Texts(reference, texts, future))
            self._changed.notify()
        return future

    def generate(self, job: Any) -> None:
        """Queue a generation. Raises Busy when too many requests wait."""
        with self._changed:
            if self._closed:
                raise Busy("the server is ending: ask again when it is back")
            self._generation.submit(job)
            self._changed.notify()

    def close(self) -> None:
        """Answer the texts that are queued, end the generations, then the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            self._answer([job for job in batch if job.future.set_running_or_notify_cancel()])
            if self._generating():
                self._generation.step()
        if self._generation:
            self._generation.close()

    def _generating(self) -> bool:
        return self._generation is not None and self._generation.active()

    def _next(self) -> list[Texts] | None:
        """The oldest job and those that go with it; an empty list if only generations wait; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed or self._generating())
            if not self._jobs:
                return None if self._closed else []
            batch, others, rows = [self._jobs.popleft()], deque(), 0
            rows = len(batch[0].texts)
            while self._jobs:
                job = self._jobs.popleft()
                if job.reference == batch[0].reference and rows + len(job.texts) <= self._max_rows:
                    batch.append(job)
                    rows += len(job.texts)
                else:
                    others.append(job)
            self._jobs = others
            return batch

    def _answer(self, batch: list[Texts]) -> None:
        if not batch:
            return
        try:
            who, rows = self._work(batch[0].reference, [text for job in batch for text in job.texts])
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            for job in batch:               # one request's fault must not be another's
                self._answer([job])
            return
        begin = 0
        for job in batch:
            job.future.set_result((who, rows[begin:begin + len(job.texts)]))
            begin += len(job.texts)
