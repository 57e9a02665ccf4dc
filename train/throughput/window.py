"""Measures the throughput over a window of steps, and the time spent in interruptions, from which the remaining time is
estimated."""

from collections import deque
from dataclasses import asdict, dataclass

WARM_UP = 2
"""Number of steps at the start of a process that are not measured. The first step compiles kernels and connects ranks.
The second is the first step during which the optimizer's state is in memory."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of a run since its beginning, over all ranks."""

    batches: int
    tokens: int
    """Number of tokens including padding, as Composer counts them."""
    real_tokens: int
    """Number of tokens without padding."""
    trained_tokens: int
    """Number of tokens for which the loss is computed."""


class Window:
    """The most recent steps of this process and their durations."""

    def __init__(self, size: int) -> None:
        """size: the number of steps over which rates are computed."""
        self._steps = 0
        self._ends: deque[tuple[float, Progress]] = deque(maxlen=size + 1)

    def add(self, seconds: float, progress: Progress) -> None:
        """Record the end of a step. seconds: total duration of this process's steps so far, including the time spent
        waiting for data."""
        self._steps += 1
        if self._steps >= WARM_UP:
            self._ends.append((seconds, progress))

    def per_second(self) -> dict[str, float]:
        """The rate of each field of Progress. Empty during the warm-up."""
        if len(self._ends) < 2:
            return {}
        (since, first), (until, last) = self._ends[0], self._ends[-1]
        if until <= since:
            return {}
        before = asdict(first)
        return {name: (count - before[name]) / (until - since) for name, count in asdict(last).items()}


class Interruptions:
    """Measures the time of interruptions, which are activities between steps, such as evaluations. The average number
    of seconds per batch is computed up to the last interruption, so that the estimate changes only when there is a new
    interruption."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None
        self._seconds = 0.0
        self.per_batch = 0.0

    def add(self, batch: int, seconds: float) -> None:
        """Record the end of step `batch`. seconds: total time of interruptions in this process so far. Interruptions
        before the first step of the process are ignored, because they are not representative."""
        if self._first is None:
            self._first = batch, seconds
        first, before = self._first
        if seconds > self._seconds and batch > first:
            # The interruption ended before this step, so its time is divided among the earlier steps.
            self.per_batch = (seconds - before) / (batch - first)
        self._seconds = seconds
