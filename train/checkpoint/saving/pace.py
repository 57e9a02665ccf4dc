"""Limits how much CPU time the saving thread takes from training."""

import threading
import time

_REST = 3.0
"""Length of a pause, as a multiple of the computing time before it. The thread then uses a quarter of a core."""
_BUSY_SECONDS = 0.002
"""Computing time between two pauses. Each pause makes Python switch threads, which costs training time."""


class Pace:
    """Pauses the saving thread regularly, unless the main thread waits for the save. Must be used by one thread
    only."""

    def __init__(self) -> None:
        self._waited_for = threading.Event()
        self._rested = 0.0
        """CPU time of the thread at its last pause."""

    def begin(self, *, background: bool) -> None:
        """Start a save. background: whether it runs in its own thread while training continues."""
        self._rested = 0.0
        if background:
            self._waited_for.clear()
        else:
            self._waited_for.set()

    def hurry(self) -> None:
        """Skip all pauses until the end of this save, because the main thread waits for it."""
        self._waited_for.set()

    def rest(self) -> None:
        """Pause if necessary. Must be called often. Time that the thread spends waiting for a disk does not count."""
        busy = time.thread_time() - self._rested
        if busy > _BUSY_SECONDS and not self._waited_for.is_set():
            self._waited_for.wait(_REST * busy)
            self._rested = time.thread_time()
