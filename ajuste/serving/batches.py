"""One inference thread and its queue: rows of tokens, computed in slices between two tokens of the generations.

    request   rows of token ids for one model; the queue is counted in tokens, since that is what its work costs
    slice     rows of like length, of one request or of several, as many as the model does in about SLICE_SECONDS
    between   one token of every generation (ajuste/serving/generation.py)

Whose slice is next: by turns that of the request which has had fewest tokens, so a short one never stands behind a long
one, and that of the request which has waited longest for a slice, so a long one goes on whatever else comes. Nothing
waits for a slice to fill, so a lone request pays no delay. What a client asked for that has gone is dropped before the
next slice. One thread does all the computing: torch uses the cores inside a slice, and the models need no locks.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

SLICE_SECONDS = 0.1
FIRST_TOKENS = 512              # of a slice of a model whose speed is not known
LEAST_TOKENS, MOST_TOKENS = 128, 65_536
MAX_WAITING_TOKENS = 262_144
SMALL_TOKENS = 2048             # a request of at most so many may also take the last quarter of the queue
LIKE, MORE = 2, 16              # rows of one slice: the longest has at most 2 x the shortest + 16 tokens
MAX_RETRY_SECONDS = 30

Row = Sequence[int]


class Busy(RuntimeError):
    """Too much is waiting. `seconds` says when it is worth asking again."""

    def __init__(self, message: str, seconds: int = 1) -> None:
        super().__init__(message)
        self.seconds = seconds


class Ending(RuntimeError):
    """The server is about to end: nothing is taken any more."""

    def __init__(self) -> None:
        super().__init__("the server is ending: ask again when it is back")


class Late(RuntimeError):
    """The time that a request may take is over."""


class Job:
    """One request's place in the queue, from before its rows are known to its last row. `future` gives what `work`
    made of each row, in their order."""

    def __init__(self, who: Any, tokens: int, number: int) -> None:
        self.who, self.tokens, self.number = who, tokens, number    # tokens: reserved, then those of the rows left
        self.future: Future = Future()
        self.future.set_running_or_notify_cancel()                  # who waits may go, the future is still ours
        self.rows: Sequence[Row] = ()
        self.left: list[int] = []           # numbers of the rows that are to do, the longest first
        self.results: list[Any] = []
        self.had = self.last = 0            # tokens computed so far; the number of its last slice, or of its arrival's


class Stepwise(Protocol):
    """Work that the thread does a step at a time, between its slices: ajuste.serving.generation.Generation."""

    def look_at(self, job: Any) -> Any: ...
    def enqueue(self, row: Any) -> None: ...
    def active(self) -> bool: ...
    def step(self) -> None: ...
    def close(self) -> None: ...


Slice = list[tuple[Job, int]]               # rows, each by its job and its number there


class Batcher:
    """Runs `work(who, rows) -> results`, one a row, in one thread. Rows share a slice if their `who` is one object."""

    def __init__(
        self, work: Callable[[Any, list[Row]], Sequence], max_tokens: int = MAX_WAITING_TOKENS,
        generation: Stepwise | None = None,
    ) -> None:
        self._work, self._max_tokens, self._generation = work, max_tokens, generation
        self._jobs: list[Job] = []          # those whose rows are known
        self._open: set[Job] = set()        # those that hold a place
        self._tokens = self._number = self._slices = 0
        self._budgets: dict[int, float] = {}            # tokens of a slice, by the id of who computes
        self._rate = 0.0                                # tokens a second of the last slices
        self._began = 0.0                               # when the present piece of work was begun; 0: none is
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    # --- from any thread ------------------------------------------------------------------------------------------

    def open(self, who: Any, tokens: int) -> Job:
        """Take a place for a request of about so many tokens. Raises Busy when too many wait, and Ending."""
        with self._changed:
            if self._closed:
                raise Ending
            room = self._max_tokens if tokens <= SMALL_TOKENS else self._max_tokens * 3 // 4
            if self._tokens + tokens > room and self._open:
                raise Busy(f"{self._tokens} tokens are waiting: try again later", self._patience())
            self._number += 1
            job = Job(who, tokens, self._number)
            self._open.add(job)
            self._tokens += tokens
        return job

    def submit(self, job: Job, rows: Sequence[Row]) -> Future:
        """Queue the rows of a request that has its place. Raises Ending."""
        with self._changed:
            if job not in self._open:                   # dropped meanwhile
                return job.future
            if self._closed:
                self._leave(job)
                raise Ending
            job.rows, job.results = rows, [None] * len(rows)
            job.left = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), -i))
            tokens = sum(map(len, rows))
            self._tokens += tokens - job.tokens
            job.tokens, job.last = tokens, self._slices
            if rows:
                self._jobs.append(job)
                self._changed.notify()
            else:
                self._leave(job)
                job.future.set_result([])
        return job.future

    def drop(self, job: Job) -> None:
        """Nobody waits for this request any more: the rest of it is not computed. Means nothing once it is done."""
        with self._changed:
            if job in self._open:
                self._leave(job)

    def generate(self, job: Any) -> None:
        """Queue a generation, which is tokenized in the caller's thread. Raises Busy when too many wait, and Ending."""
        row = self._generation.look_at(job)
        with self._changed:
            if self._closed:
                raise Ending
            if row is not None:
                self._generation.enqueue(row)
                self._changed.notify()

    def load(self) -> dict[str, int]:
        """How many requests hold a place, and with how many tokens."""
        with self._changed:
            return {"requests": len(self._open), "tokens": self._tokens}

    def stuck(self) -> float:
        """Seconds that the present piece of work has taken so far; infinite if the thread has ended by a fault."""
        began = self._began
        if not self._thread.is_alive() and not self._closed:
            return float("inf")
        return time.monotonic() - began if began else 0.0

    def close(self) -> None:
        """Answer the rows that are queued, end the generations, then the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    # --- the inference thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (part := self._next()) is not None:
            if part:
                began = time.monotonic()
                self._compute(part)
                self._learn(part, time.monotonic() - began)
            if self._generating():
                self._generation.step()
        self._began = 0.0
        if self._generation:
            self._generation.close()

    def _generating(self) -> bool:
        return self._generation is not None and self._generation.active()

    def _next(self) -> Slice | None:
        """The next slice; an empty one if only generations wait; None at the end."""
        with self._changed:
            self._began = 0.0
            self._changed.wait_for(lambda: self._jobs or self._closed or self._generating())
            if not self._jobs and self._closed:
                return None
            self._began = time.monotonic()
            return self._slice() if self._jobs else []

    def _slice(self) -> Slice:
        self._slices += 1
        if self._slices % 2:
            head = min(self._jobs, key=lambda job: (job.had, job.number))
        else:
            head = min(self._jobs, key=lambda job: (job.last, job.number))
        budget, part = self._budgets.get(id(head.who), FIRST_TOKENS), []
        shortest = longest = len(head.rows[head.left[-1]])
        for job in [head, *(job for job in self._jobs if job.who is head.who and job is not head)]:
            while job.left:
                length = len(job.rows[job.left[-1]])
                low, high = min(shortest, length), max(longest, length)
                if part and ((len(part) + 1) * high > budget or high > LIKE * low + MORE):
                    break
                shortest, longest = low, high
                part.append((job, job.left.pop()))
                job.last = self._slices
        return part

    def _compute(self, part: Slice) -> None:
        """Let the rows' jobs have their results; one request's fault is not another's."""
        jobs = list(dict.fromkeys(job for job, _ in part))
        try:
            results = self._work(jobs[0].who, [job.rows[i] for job, i in part])
        except Exception as error:
            if len(jobs) > 1:
                for one in jobs:
                    self._compute([(job, i) for job, i in part if job is one])
                return
            with self._changed:
                if jobs[0] in self._open:
                    self._leave(jobs[0])
                    jobs[0].future.set_exception(error)
            return
        with self._changed:
            for (job, i), result in zip(part, results, strict=True):
                tokens = len(job.rows[i])
                job.results[i] = result
                job.had += tokens
                if job in self._open:
                    job.tokens -= tokens
                    self._tokens -= tokens
            for job in jobs:
                if job in self._open and not job.left:
                    self._leave(job)
                    job.future.set_result(job.results)

    def _leave(self, job: Job) -> None:
        self._open.discard(job)
        self._tokens -= job.tokens
        if job in self._jobs:
            self._jobs.remove(job)

    def _learn(self, part: Slice, seconds: float) -> None:
        """A slice that took too long makes the next one smaller; one that was full and quick makes it larger."""
        who = id(part[0][0].who)
        tokens = len(part) * max(len(job.rows[i]) for job, i in part)
        self._rate += 0.3 * (tokens / max(seconds, 1e-6) - self._rate)
        budget, right = self._budgets.get(who, FIRST_TOKENS), SLICE_SECONDS / max(seconds, 1e-6)
        if right < 1:
            budget = min(budget, tokens) * max(right, 0.5)
        elif tokens > budget / LIKE:
            budget *= min(right, 1.25)
        if len(self._budgets) > 64:                     # models come and go
            self._budgets.clear()
        self._budgets[who] = min(max(budget, LEAST_TOKENS), MOST_TOKENS)

    def _patience(self) -> int:
        """Seconds until about half of what waits is done."""
        return int(min(max(1.0, self._tokens / 2 / max(self._rate, 1.0)), MAX_RETRY_SECONDS))
