"""A clock that does not advance while the process is suspended."""

import time
from collections.abc import Callable

LONGEST_TICK = 3.0
"""Maximum number of seconds that one tick adds. One thread calls `tick` more often than this. If more time has passed
between two calls, the whole process was suspended."""


class AwakeClock:
    """Seconds during which the process could run. A run that was suspended and continued as a whole (SIGSTOP and
    SIGCONT, a debugger, a paused virtual machine) does not exceed a deadline because of the pause."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._at_tick = 0.0, monotonic()

    def __call__(self) -> float:
        seconds, ticked = self._at_tick  # a single read, because another thread updates it
        return seconds + min(self._monotonic() - ticked, LONGEST_TICK)

    def tick(self) -> None:
        """Advance the clock. One thread must call this more often than every LONGEST_TICK seconds."""
        self._at_tick = self(), self._monotonic()
