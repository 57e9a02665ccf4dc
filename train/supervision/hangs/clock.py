"""A clock that stands still while the process is suspended."""

import time
from collections.abc import Callable

LONGEST_TICK = 3.0
"""Seconds that one tick counts at most: a thread that ticks more often and was not scheduled for longer was suspended,
with its whole process."""


class AwakeClock:
    """Seconds that the process could run. A run that is stopped and continued as a whole (SIGSTOP and SIGCONT, a
    debugger, a virtual machine that is paused) has not exceeded a deadline."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._at_tick = 0.0, monotonic()

    def __call__(self) -> float:
        seconds, ticked = self._at_tick  # one read: another thread ticks
        return seconds + min(self._monotonic() - ticked, LONGEST_TICK)

    def tick(self) -> None:
        """For one thread, more often than every LONGEST_TICK seconds."""
        self._at_tick = self(), self._monotonic()
