"""max_wall_time: until when a run may go on so that a step, a save and its upload still fit."""

import time

import psutil

_EXIT_SECONDS = 20.0
"""For loggers, the last messages and the interpreter to end, at most: a twentieth of the time if that is less."""
_WRITTEN_PER_SECOND = 100e6
"""Bytes of a rank's file of a checkpoint, before one has been timed: a slow shared file system; and of an upload."""
_MOST_OF_IT = 0.25
"""Of the time, that a save which has not been timed may count for; an upload too."""
_LONGER = 1.25
"""A step, a save or an upload may take so many times the longest one seen."""


def process_seconds() -> float:
    """Since this process started."""
    return max(time.time() - psutil.Process().create_time(), 0.0)


class WallTime:
    """Times steps and saves of this rank against the time that its process has."""

    def __init__(self, seconds: float, *, file_bytes: int, sent_bytes: int = 0) -> None:
        """file_bytes: of the largest file of a checkpoint. sent_bytes: of one that goes to an object store."""
        self.seconds = seconds
        self._started = time.monotonic() - process_seconds()
        self._step_began: float | None = None
        self._longest_step = 0.0
        self._save = min(file_bytes / _WRITTEN_PER_SECOND, _MOST_OF_IT * seconds)
        self._sending = min(sent_bytes / _WRITTEN_PER_SECOND, _MOST_OF_IT * seconds)

    def __str__(self) -> str:
        return f"{self.elapsed:.0f} s have passed; a step, a save and the exit may take {self.margin:.0f} s"

    @property
    def margin(self) -> float:
        """Seconds that a step, a save, its upload and the end may take."""
        return _LONGER * (self._longest_step + self._save + self._sending) + min(_EXIT_SECONDS, self.seconds / 20)

    @property
    def elapsed(self) -> float:
        """Seconds."""
        return time.monotonic() - self._started

    def is_up(self) -> bool:
        """Whether a further step, and a save after it, might not fit."""
        return self.elapsed + self.margin > self.seconds

    def begin_step(self) -> None:
        """Before its batch is waited for."""
        self._step_began = time.monotonic()

    def end_step(self) -> None:
        """Before anything else that is done after it."""
        if self._step_began is not None:
            self._longest_step = max(self._longest_step, time.monotonic() - self._step_began)
            self._step_began = None

    def note_save(self, longest: float) -> None:
        """longest: seconds of the longest save of this process so far; 0 where there was none."""
        if longest:
            self._save = longest

    def note_sending(self, seconds: float) -> None:
        """seconds: that all which is unsent and one checkpoint more take; 0 where none was sent yet."""
        if seconds:
            self._sending = seconds
