"""What was asked, for the drift check: off without `ajuste serve --log-requests`, redacted, capped, never in the way.

    <home>/.requests/<name>.jsonl     one line a text; past MAX_BYTES it becomes <name>.jsonl.1, in place of that one
    {"time": "2026-01-31T12:00:00Z", "name": ..., "version": "3", "kind": "classifier", "text": ..., "label": ...,
     "probability": ...}

`text` is the text of a classifier, the last user message (or the prompt) of a decoder, the response of a reward model;
`label` and `probability` are null but for a classifier. It is redacted by form (ajuste/serving/log/redact.py), then cut
at MAX_CHARS.
The files are for their owner alone (0600, the folder 0700).

An answer never waits: `add` puts the text in a queue, and a thread redacts and writes. What does not fit into the queue
or cannot be written is dropped and counted; /health says how many.
"""

import json
import logging
import os
import queue
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ajuste.serving.loading import Served
from ajuste.serving.log.redact import redact

MAX_BYTES = 20 * 2**20      # of a file; a name has two
MAX_CHARS = 2000            # of a text
MAX_QUEUED = 2000
EDGE = 200                  # characters that are redacted beyond MAX_CHARS, and cut: half a card number has no form

log = logging.getLogger("ajuste.serving")


class RequestLog:
    """Appends lines to the files in `folder`, in a thread of its own, from the first `add` to `close`."""

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._queue: queue.Queue = queue.Queue(MAX_QUEUED)
        self._written = self._dropped = self._unwritten = 0     # _dropped by callers under the lock, _unwritten by us
        self._lock, self._broken = threading.Lock(), ""
        self._thread = threading.Thread(target=self._run, name="request log", daemon=True)
        self._thread.start()

    def add(self, served: Served, text: str, label: str | None = None, probability: float | None = None) -> None:
        """Queue one text and the answer to it. Never blocks, never raises."""
        part = text[: MAX_CHARS + 2 * EDGE + 1]                 # what waits in memory is capped too
        try:
            self._queue.put_nowait((datetime.now(UTC), served.name, served.version, served.kind, part, label,
                                    probability))
        except queue.Full:
            with self._lock:
                self._dropped += 1

    def counts(self) -> dict[str, int]:
        """Lines written and dropped since the start."""
        return {"written": self._written, "dropped": self._dropped + self._unwritten}

    def close(self) -> None:
        """Write what is queued, for at most 5 seconds, and end."""
        try:
            self._queue.put(None, timeout=5)
        except queue.Full:
            return
        self._thread.join(5)

    def _run(self) -> None:
        ended = False
        while not ended:
            batch = [self._queue.get()]
            while batch[-1] is not None and len(batch) < 100:
                try:
                    batch.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            if ended := batch[-1] is None:
                batch.pop()
            lines: dict[str, list[bytes]] = {}
            for entry in batch:
                try:
                    lines.setdefault(entry[1], []).append(line(*entry))
                except Exception as error:                      # a fault of ours must not end the thread
                    self._unwritten += 1
                    log.error("%s while redacting a request", type(error).__name__)
            for name, those in lines.items():
                try:
                    self._append(name, those)
                    self._broken = ""
                except OSError as error:                        # a full disk is no reason to stop answering
                    if str(error) != self._broken:
                        self._broken = str(error)
                        log.warning("requests are not logged: %s", error)

    def _append(self, name: str, lines: list[bytes]) -> None:
        """Raises OSError; what it did not write counts as dropped."""
        waiting = len(lines)
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            path = self._folder / f"{name}.jsonl"
            for part in self._parts(path, lines):
                # no link is followed: who can write in the folder must not choose what we append to
                file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
                try:
                    os.fchmod(file, 0o600)
                    content = b"".join(part)
                    start = os.fstat(file).st_size
                    if os.write(file, content) < len(content):  # the disk is full: no half line stays
                        os.ftruncate(file, start)
                        raise OSError(f"{path}: no space left")
                finally:
                    os.close(file)
                self._written += len(part)
                waiting -= len(part)
        finally:
            self._unwritten += waiting

    def _parts(self, path: Path, lines: list[bytes]) -> Iterator[list[bytes]]:
        """The lines in portions that fit into the file, which is rotated between them."""
        size = path.stat().st_size if path.exists() else 0
        part: list[bytes] = []
        for one in lines:
            if size + len(one) > self._max_bytes and (size or part):
                if part:
                    yield part
                os.replace(path, path.with_name(f"{path.name}.1"))
                size, part = 0, []
            part.append(one)
            size += len(one)
        if part:
            yield part


def line(time: datetime, name: str, version: str, kind: str, text: str, label: str | None,
         probability: float | None) -> bytes:
    """One line of the file: redacted, then cut."""
    shown = redact(text[: MAX_CHARS + 2 * EDGE])
    if len(text) > MAX_CHARS + 2 * EDGE:
        shown = shown[:-EDGE]
    content: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ"), "name": name, "version": version, "kind": kind,
        "text": shown[:MAX_CHARS], "label": label, "probability": probability,
    }
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
