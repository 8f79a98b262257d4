"""The thread that looks at the registry while others answer: it loads what an alias names now, beside the old version.

    every EVERY_SECONDS   Models.follow(): what do the references in use name? load, digest, smoke request, then swap

A move is so followed within EVERY_SECONDS, the look-up and the load. No request waits for any of them. A registry that
is slow or away holds up this thread alone: what was answered last stands.
"""

import logging
import threading

from ajuste.serving.models import Models

EVERY_SECONDS = 2.0

log = logging.getLogger("ajuste.serving")


class Follower:
    """Calls `models.follow()` in a thread of its own, from `start` to `close`."""

    def __init__(self, models: Models, every: float = EVERY_SECONDS) -> None:
        self._models, self._every = models, every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def close(self) -> None:
        """End it; a look-up that hangs is not waited for."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def _run(self) -> None:
        while not self._ended.wait(self._every):
            try:
                self._models.follow()
            except Exception as error:      # a fault of ours must not end the following
                log.error("%s while following the registry: %s", type(error).__name__, error)
