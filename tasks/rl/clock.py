"""What a run of the loop takes: seconds by phase and sampled tokens, of this process.

A caller that wants to know more (a benchmark, an observer) passes a subclass to `tasks.rl.loop.train`.
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """seconds: by phase (rollout, score, learn, radar). tokens: sampled for learning."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.tokens = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Around a phase; one that fails does not count."""
        began = time.monotonic()
        yield
        self.seconds[name] += time.monotonic() - began

    @contextmanager
    def update(self) -> Iterator[None]:
        """Around a whole update, its record included and its checkpoint not; there is nothing to do here."""
        yield
