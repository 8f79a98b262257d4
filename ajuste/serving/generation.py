"""Text generation for many requests at once: a batch that requests join and leave between two tokens.

    Generation.look_at(job)     from any thread: its model and its tokens; what is wrong with it is told to job.deliver
    Generation.enqueue(row)     from any thread: queue it; what happens to it is told to job.deliver
    Generation.step()           from the inference thread alone: take in what waits, then one token for every row

A request is never held back until others end: it joins at the next step, by its prompt's keys and values beside those
of the rows that are under way (ajuste/serving/decoding.py), and leaves with its last token. Limits: rows and tokens in
memory, requests that wait, tokens and seconds a request. The clock ends an answer as its token limit does: "length".
"""

import logging
import time
import traceback
from collections import Counter, deque

import torch
from torch import Tensor

from ajuste.learning.text import chat
from ajuste.serving.batches import Busy, Ending, Late
from ajuste.serving.decoding import Batch, pick
from ajuste.serving.jobs import BadRequest, Finished, Job, Started
from ajuste.serving.loading import Served
from ajuste.serving.models import Models
from ajuste.serving.pieces import Pieces
from ajuste.serving.tokens import token_of

MAX_ROWS = 32                   # under way at once, over all models
MAX_BATCH_TOKENS = 32_768       # rows x longest (prompt + answer) of one model's batch: bounds its keys and values
MAX_WAITING = 128
MAX_SECONDS = 120.0
MAX_TOKENS = 4096               # prompt + answer of one request, where the model's context allows that many
DEFAULT_TOKENS = 512            # of an answer, where the request does not say
MAX_CHARS = 32 * MAX_TOKENS     # of a prompt: longer ones are refused before they are tokenized
GREEDY = 1e-5                   # a temperature below it takes the largest: logits / 1e-308 is no number any more
PREFILL_TOKENS = 2048           # of prompts taken in between two tokens of the others

log = logging.getLogger("ajuste.serving")


class Row:
    """A job with its model's tokens."""

    def __init__(self, job: Job, served: Served) -> None:
        self.job, self.served = job, served
        self.ids, self.limit = prompt_of(job, served)
        self.ends = frozenset(chat.end_of_turn(served.tokenizer)) | {served.tokenizer.eos_token_id}
        tagged = not isinstance(job.prompt, str) and not served.tokenizer.chat_template
        self.pieces = Pieces(served.tokenizer, (*job.stop, chat.CLOSING) if tagged else job.stop, job.guard)
        self.count = 0
        self.generator = torch.Generator()
        if job.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(job.seed)

    @property
    def size(self) -> int:
        """Columns of keys and values when it ends, a learned prefix not counted."""
        return len(self.ids) + self.limit

    def late(self) -> bool:
        return time.monotonic() - self.job.submitted > MAX_SECONDS

    def choose(self, logits: Tensor, largest: int) -> int:
        """The next token, drawn from logits [V], of which `largest` is the argmax."""
        job = self.job
        if job.temperature < GREEDY:
            return largest
        return pick(logits, job.temperature, job.top_p, self.generator)

    def take(self, token: int, logits: Tensor) -> bool:
        """One more token, drawn from logits [V]; whether it was the last."""
        self.count += 1
        if token in self.ends:
            return self._finish("stop")
        if self.job.top is not None:
            self.job.deliver(token_of(self.served.tokenizer, logits, token, self.job.top))
        if piece := self.pieces.add(token):
            self.job.deliver(piece)
        if self.pieces.stopped:
            return self._finish("stop")
        return (self.count >= self.limit or self.late()) and self._finish("length")

    def _finish(self, reason: str) -> bool:
        if rest := self.pieces.end():
            self.job.deliver(rest)
        self.job.deliver(Finished("content_filter" if self.pieces.refused else reason, self.count))
        return True


def prompt_of(job: Job, served: Served) -> tuple[list[int], int]:
    """The prompt's token ids and how many may follow. Raises BadRequest."""
    param, label = ("prompt" if isinstance(job.prompt, str) else "messages"), f"{served.name}/{served.version}"
    check_length(job.prompt, param)
    try:
        if isinstance(job.prompt, str):
            ids = served.tokenizer(job.prompt)["input_ids"]
        else:
            ids = chat.prompt_ids(served.tokenizer, job.prompt)
    except ValueError as error:
        raise BadRequest(str(error), param) from None
    if not ids:
        raise BadRequest("the prompt is empty", param)
    room = min(served.context, MAX_TOKENS)
    asked = min(DEFAULT_TOKENS, max(1, room - len(ids))) if job.max_tokens is None else job.max_tokens
    if len(ids) + asked > room:
        raise BadRequest(f"{len(ids)} tokens of prompt and {asked} of answer are more than the {room} that {label} "
                         "takes: shorten the prompt or lower max_tokens", param, "context_length_exceeded")
    return ids, asked


def check_length(prompt: str | list[dict[str, str]], param: str) -> None:
    """Raise BadRequest for a text or a conversation that no context takes, whatever its tokens are."""
    characters = len(prompt) if isinstance(prompt, str) else sum(len(turn["content"]) for turn in prompt)
    if characters > MAX_CHARS:
        raise BadRequest(f"{param} has {characters} characters, at most {MAX_CHARS} are taken: shorten it", param,
                         "context_length_exceeded")


class Generation:
    """All generations of one process. `step` is passive: an inference thread (or `ajuste chat` itself) calls it."""

    def __init__(self, models: Models) -> None:
        self.counts: Counter[str] = Counter()       # submitted, finished, cancelled, failed, tokens, steps
        self._models = models
        self._inbox: deque[Row] = deque()           # put there by any thread
        self._waiting: deque[Row] = deque()         # for room in its batch; the inference thread's own, as what follows
        self._batches: dict[int, tuple[Batch, list[Row]]] = {}      # by the id of the model, which the rows keep alive

    def look_at(self, job: Job) -> "Row | None":
        """Find the model and tokenize. What is wrong with the job is told to it, then there is no row. From any thread.
        Raises Busy, before any work, when too many wait."""
        self._check_room()
        self.counts["submitted"] += 1
        try:
            served = self._models.get(job.reference or self._models.default("decoder"))
            served.must_be("decoder")
            return Row(job, served)
        except Exception as error:
            self._fail([job], error)
            return None

    def enqueue(self, row: "Row") -> None:
        """Queue a row from `look_at`. Raises Busy when too many wait."""
        self._check_room()
        self._inbox.append(row)

    def submit(self, job: Job) -> None:
        """Both, for who has one thread."""
        if row := self.look_at(job):
            self.enqueue(row)

    def _check_room(self) -> None:
        waiting = len(self._inbox) + len(self._waiting)
        if waiting >= MAX_WAITING:
            raise Busy(f"{waiting} requests are waiting: try again in a moment", 2)

    def active(self) -> bool:
        """Whether there is something to do."""
        return bool(self._inbox or self._waiting or self._batches)

    def load(self) -> dict[str, int]:
        """How many rows are under way and how many requests wait."""
        return {"generating": sum(len(rows) for _, rows in list(self._batches.values())),
                "waiting": len(self._inbox) + len(self._waiting)}

    def step(self) -> None:
        """Let cancelled rows leave, new ones join, and give every row its next token. Errors go to the jobs."""
        try:
            while self._inbox:
                self._waiting.append(self._inbox.popleft())
            self._drop_cancelled()
            self._admit()
        except Exception as error:
            self.close(error)
        for key, (batch, rows) in list(self._batches.items()):
            try:
                self._advance(batch, rows)
            except Exception as error:              # one model's fault must not end the thread
                self._fail(rows, error)
            if not rows:
                del self._batches[key]

    def close(self, error: Exception | None = None) -> None:
        """Refuse what waits, end what is under way. Belongs to the inference thread, as `step` does."""
        error = error or Ending()
        self._fail([*self._inbox, *self._waiting], error)
        for _, rows in self._batches.values():
            self._fail(rows, error)
        self._inbox.clear()
        self._waiting.clear()
        self._batches.clear()

    # --- the steps of a step --------------------------------------------------------------------------------------

    def _drop_cancelled(self) -> None:
        before = len(self._waiting)
        self._waiting = deque(row for row in self._waiting if not row.job.cancelled)
        self.counts["cancelled"] += before - len(self._waiting)
        for key, (batch, rows) in list(self._batches.items()):
            stay = [i for i, row in enumerate(rows) if not row.job.cancelled]
            if len(stay) < len(rows):
                self.counts["cancelled"] += len(rows) - len(stay)
                self._leave(batch, rows, stay)
            if not rows:
                del self._batches[key]

    def _admit(self) -> None:
        """Let waiting rows join, oldest first, as far as rows, memory and the patience of the others allow."""
        joining: dict[int, list[Row]] = {}
        blocked, later, longest, admitted = set(), deque(), 0, 0
        total = sum(len(rows) for _, rows in self._batches.values())
        for row in self._waiting:
            key = id(row.served.model)
            if row.late():
                self._fail([row.job], Late(f"the request waited {MAX_SECONDS:.0f} s for its turn: try again later"))
                continue
            beside = self._batches.get(key, (None, []))[1] + joining.get(key, [])
            memory = (len(beside) + 1) * max(other.size for other in [*beside, row])
            prefill = (admitted + 1) * max(longest, len(row.ids))
            if (key in blocked or total + admitted >= MAX_ROWS or (beside and memory > MAX_BATCH_TOKENS)
                    or (admitted and prefill > PREFILL_TOKENS)):
                blocked.add(key)                    # the order of one model's requests is kept
                later.append(row)
                continue
            joining.setdefault(key, []).append(row)
            longest, admitted = max(longest, len(row.ids)), admitted + 1
        self._waiting = later
        for key, new in joining.items():
            try:
                batch, rows = self._batches.get(key) or (Batch(new[0].served.model), [])
                batch.join([row.ids for row in new])
            except Exception as error:
                self._fail([row.job for row in new], error)
                continue
            self._batches[key] = batch, rows
            rows += new
            for row in new:
                row.job.deliver(Started(row.served, len(row.ids)))

    def _advance(self, batch: Batch, rows: list[Row]) -> None:
        """One token for every row of one model; those that are done leave."""
        logits = batch.step()
        largest = logits.argmax(-1).tolist()
        self.counts["steps"] += 1
        self.counts["tokens"] += len(rows)
        stay = []
        for i, row in enumerate(rows):
            token = batch.tokens[i] = row.choose(logits[i], largest[i])
            if not row.take(token, logits[i]):
                stay.append(i)
        self.counts["finished"] += len(rows) - len(stay)
        self._leave(batch, rows, stay)

    @staticmethod
    def _leave(batch: Batch, rows: list[Row], stay: list[int]) -> None:
        rows[:] = [rows[i] for i in batch.keep(stay)]

    def _fail(self, those: list[Row] | list[Job], error: Exception) -> None:
        """Tell them, and forget them."""
        for one in those:
            job = one.job if isinstance(one, Row) else one
            self.counts["failed"] += 1
            job.deliver(error)
        if not isinstance(error, (BadRequest, Ending, Late, LookupError)):
            where = "".join(traceback.format_tb(error.__traceback__))       # lines of code; a message may hold a text
            log.error("%s while generating\n%s", type(error).__name__, where)
        those.clear()
