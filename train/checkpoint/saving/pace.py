"""How fast a thread saves while training needs the same processors."""

import threading
import time

_REST = 3.0
"""Times as long as the thread has computed: hashing and writing take a quarter of a core then."""
_BUSY_SECONDS = 0.002
"""To which it computes without a rest. Each rest costs training a change of the thread that runs Python."""


class Pace:
    """Lets the thread that saves rest, unless somebody waits for it. For one thread."""

    def __init__(self) -> None:
        self._waited_for = threading.Event()
        self._rested = 0.0
        """When, by the clock of the thread's own time on a processor."""

    def begin(self, *, background: bool) -> None:
        """A save. background: whether it is done in a thread of its own, while training goes on."""
        self._rested = 0.0
        if background:
            self._waited_for.clear()
        else:
            self._waited_for.set()

    def hurry(self) -> None:
        """For whoever waits: no rests to the end of this save."""
        self._waited_for.set()

    def rest(self) -> None:
        """To be called often. Seconds in which the thread waited for a disk are none that it has computed."""
        busy = time.thread_time() - self._rested
        if busy > _BUSY_SECONDS and not self._waited_for.is_set():
            self._waited_for.wait(_REST * busy)
            self._rested = time.thread_time()
