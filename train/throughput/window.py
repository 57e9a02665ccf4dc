"""Throughput over a window of steps, and the remaining time."""

from collections import deque
from dataclasses import asdict, dataclass

WARM_UP = 2
"""Steps of a process that are not measured: the first compiles kernels and connects ranks, the second is the first with
the optimizer's state in memory."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of a run since its beginning, over all ranks."""

    batches: int
    tokens: int
    """Positions including padding, as Composer counts them."""
    real_tokens: int
    """Tokens without padding."""
    trained_tokens: int
    """Tokens that the loss counts."""


class Window:
    """The most recent steps of this process and their durations."""

    def __init__(self, size: int) -> None:
        """size: number of steps."""
        self._steps = 0
        self._ends: deque[tuple[float, Progress]] = deque(maxlen=size + 1)

    def add(self, seconds: float, progress: Progress) -> None:
        """Record the end of a step. seconds: total time of this process's steps so far, including data."""
        self._steps += 1
        if self._steps >= WARM_UP:
            self._ends.append((seconds, progress))

    def per_second(self) -> dict[str, float]:
        """The rate of each field of Progress; empty during the warm-up."""
        if len(self._ends) < 2:
            return {}
        (since, first), (until, last) = self._ends[0], self._ends[-1]
        if until <= since:
            return {}
        before = asdict(first)
        return {name: (count - before[name]) / (until - since) for name, count in asdict(last).items()}


class Interruptions:
    """Activities between steps, such as evaluations. Measures their seconds per batch up to the end of the last one, so
    that the estimate only changes with the next one."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None
        self._seconds = 0.0
        self.per_batch = 0.0

    def add(self, batch: int, seconds: float) -> None:
        """Called at the end of step `batch`. seconds: total time of interruptions in this process so far. Interruptions
        before its first step are not representative and are ignored."""
        if self._first is None:
            self._first = batch, seconds
        first, before = self._first
        if seconds > self._seconds and batch > first:
            # The interruption took place before this step.
            self.per_batch = (seconds - before) / (batch - first)
        self._seconds = seconds
