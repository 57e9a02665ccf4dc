"""Throughput over a window of steps, and the time that is left."""

from collections import deque
from dataclasses import asdict, dataclass

WARM_UP = 2
"""Steps of a process that throughput leaves out: the first compiles kernels and connects ranks, the second is the first
with the optimizer's state in memory."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Of a run since its beginning, over all ranks."""

    batches: int
    tokens: int
    """Positions, padding included, as Composer counts them."""
    real_tokens: int
    """Without padding."""
    trained_tokens: int
    """Those that the loss counts."""


class Window:
    """The last steps of this process, and what each has taken."""

    def __init__(self, size: int) -> None:
        """size: in steps."""
        self._steps = 0
        self._ends: deque[tuple[float, Progress]] = deque(maxlen=size + 1)

    def add(self, seconds: float, progress: Progress) -> None:
        """A step has ended. seconds: that steps of this process have taken so far, data included."""
        self._steps += 1
        if self._steps >= WARM_UP:
            self._ends.append((seconds, progress))

    def per_second(self) -> dict[str, float]:
        """Each field of Progress; empty during the warm-up."""
        if len(self._ends) < 2:
            return {}
        (since, first), (until, last) = self._ends[0], self._ends[-1]
        if until <= since:
            return {}
        before = asdict(first)
        return {name: (count - before[name]) / (until - since) for name, count in asdict(last).items()}


class Interruptions:
    """What a run does between steps, such as evaluations: seconds for each batch, as of when the last one ended, so
    that the estimate does not change until the next."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None
        self._seconds = 0.0
        self.per_batch = 0.0

    def add(self, batch: int, seconds: float) -> None:
        """At the end of the step that `batch` counts last. seconds: of interruptions of this process so far; those
        before its first step are no measure of those to come."""
        if self._first is None:
            self._first = batch, seconds
        first, before = self._first
        if seconds > self._seconds and batch > first:
            # They came before this step.
            self.per_batch = (seconds - before) / (batch - first)
        self._seconds = seconds
