"""Limits the CPU time that the saving thread uses while training continues."""

import threading
import time

_REST = 3.0
"""Length of a pause, as a multiple of the computing time before the pause. With 3, the thread uses a quarter of a
core."""
_BUSY_SECONDS = 0.002
"""Computing time in seconds between two pauses. Each pause makes Python switch threads, which slows down training."""


class Pace:
    """Pauses the saving thread regularly, unless the main thread waits for the save. Only one thread may save at a
    time."""

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
        """Skip all pauses until the end of the current save, because the main thread waits for it."""
        self._waited_for.set()

    def rest(self) -> None:
        """Pause if necessary. Must be called often by the saving thread. Time that the thread spends waiting for a disk
        does not count as computing time."""
        busy = time.thread_time() - self._rested
        if busy > _BUSY_SECONDS and not self._waited_for.is_set():
            self._waited_for.wait(_REST * busy)
            self._rested = time.thread_time()
