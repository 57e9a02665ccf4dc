"""A logger destination that receives all metrics of a step together."""

from collections.abc import Mapping
from typing import Any

from composer.core import State
from composer.loggers import Logger, LoggerDestination

_CLOCK = ("epoch", "iteration", "batch", "sample", "token")
_LEFT_OUT = {
    "trainer/device_train_microbatch_size",
    *(f"time/{unit}{of}" for unit in _CLOCK for of in ("", "_in_epoch", "_in_iteration")),
}
"""Names that are not written, although Composer logs them as metrics: a config key, and the values of Composer's
timestamp before the step."""


class StepLogger(LoggerDestination):
    """Collects the metrics of a step and passes them to `write` at the end of the step or of an evaluation.

    Composer increments its batch count after the loss of a step is logged and before Event.BATCH_END, so it logs the
    metrics of one step under two numbers. This class uses one number for a step: the number of trained batches, which
    the names of checkpoints also contain.
    """

    def __init__(self) -> None:
        self._metrics: dict[str, float] = {}
        self._in_step = False

    def write(self, state: State, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step. `metrics` is never empty. batch_of(state) returns the batch that the metrics
        belong to."""
        raise NotImplementedError

    def batch_of(self, state: State) -> int:
        """Return the batch that the written metrics belong to: the last completed step, or the current step if the run
        ends during a step."""
        return state.timestamp.batch.value + self._in_step

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self._metrics.update((name, float(value)) for name, value in metrics.items() if name not in _LEFT_OUT)

    def batch_start(self, state: State, logger: Logger) -> None:
        self._in_step = True

    # Composer calls each of these methods first on all callbacks, and then on the loggers.
    def batch_end(self, state: State, logger: Logger) -> None:
        self._in_step = False
        self.flush(state)

    def eval_end(self, state: State, logger: Logger) -> None:
        self.flush(state)

    def fit_end(self, state: State, logger: Logger) -> None:
        self.flush(state)

    def close(self, state: State, logger: Logger) -> None:
        self.flush(state)

    def flush(self, state: State) -> None:
        """Write the metrics that were collected since the last flush."""
        if self._metrics:
            metrics, self._metrics = self._metrics, {}
            self.write(state, metrics)
