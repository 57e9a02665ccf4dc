"""max_wall_time: the time at which a run must stop, so that the run can still finish a step, save a checkpoint and
upload the checkpoint."""

import time

import psutil

_EXIT_SECONDS = 20.0
"""Seconds for loggers, last messages and the interpreter's exit; at most a twentieth of max_wall_time."""
_WRITTEN_PER_SECOND = 100e6
"""Bytes per second that are assumed until a save or an upload has been timed: the speed of a slow shared file
system."""
_MOST_OF_IT = 0.25
"""Largest duration that is assumed for a save or an upload until one has been timed, as a share of max_wall_time."""
_LONGER = 1.25
"""Safety factor on the longest step, save and upload so far."""


def process_seconds() -> float:
    """Seconds since this process started."""
    return max(time.time() - psutil.Process().create_time(), 0.0)


class WallTime:
    """Determines whether the remaining time of this process is enough for another step and a save."""

    def __init__(self, seconds: float, *, file_bytes: int, sent_bytes: int = 0) -> None:
        """file_bytes: size of a checkpoint's largest file. sent_bytes: size of a checkpoint if checkpoints are
        uploaded, else 0."""
        self.seconds = seconds
        self._started = time.monotonic() - process_seconds()
        self._step_began: float | None = None
        self._longest_step = 0.0
        self._save = min(file_bytes / _WRITTEN_PER_SECOND, _MOST_OF_IT * seconds)
        self._sending = min(sent_bytes / _WRITTEN_PER_SECOND, _MOST_OF_IT * seconds)

    def __str__(self) -> str:
        return f"{self.elapsed:.0f} s have passed; {self.margin:.0f} s are reserved for a step, a save and the exit"

    @property
    def margin(self) -> float:
        """Seconds reserved for a step, a save, its upload and the exit."""
        return _LONGER * (self._longest_step + self._save + self._sending) + min(_EXIT_SECONDS, self.seconds / 20)

    @property
    def elapsed(self) -> float:
        """Seconds since the process started."""
        return time.monotonic() - self._started

    def is_almost_over(self) -> bool:
        """Whether the remaining time may be too short for another step and a save."""
        return self.elapsed + self.margin > self.seconds

    def begin_step(self) -> None:
        """Start timing a step, before waiting for its batch."""
        self._step_began = time.monotonic()

    def end_step(self) -> None:
        """Stop timing the step, before any other work at the end of the batch."""
        if self._step_began is not None:
            self._longest_step = max(self._longest_step, time.monotonic() - self._step_began)
            self._step_began = None

    def note_save(self, longest: float) -> None:
        """longest: seconds of the longest save of this process; 0 if there was none."""
        if longest:
            self._save = longest

    def note_sending(self, seconds: float) -> None:
        """seconds: estimated time to upload all pending checkpoints and one more; 0 before the first upload."""
        if seconds:
            self._sending = seconds
