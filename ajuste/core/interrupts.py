"""SIGINT and SIGTERM as a wish: a loop that trains ends at its next safe point; a second signal ends it at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupt:
    """Whether a signal has come. `asked` is what the loop looks at."""

    asked = False


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Inside, the first SIGINT or SIGTERM sets `asked` and a second one raises KeyboardInterrupt."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt  # only the main thread may set handlers
        return

    def ask(signum: int, frame: object) -> None:
        if interrupt.asked:
            raise KeyboardInterrupt
        interrupt.asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
