"""A logger destination that gets all metrics of a step at once."""

from collections.abc import Mapping
from typing import Any

from composer.core import State
from composer.loggers import Logger, LoggerDestination

_CLOCK = ("epoch", "iteration", "batch", "sample", "token")
_LEFT_OUT = {
    "trainer/device_train_microbatch_size",
    *(f"time/{unit}{of}" for unit in _CLOCK for of in ("", "_in_epoch", "_in_iteration")),
}
"""What Composer logs besides metrics: its clock before the step, and a key of the config."""


class StepLogger(LoggerDestination):
    """Collects what is logged during a step, and hands it to `write` when the step, or an evaluation, has ended.

    Composer advances its clock between the loss of a step and Event.BATCH_END, so what callbacks log of one step comes
    with two numbers. Here it has one: the number of batches trained, as in the names of checkpoints.
    """

    def __init__(self) -> None:
        self._metrics: dict[str, float] = {}
        self._in_step = False

    def write(self, state: State, metrics: Mapping[str, float]) -> None:
        """metrics: of batch_of(state); never empty."""
        raise NotImplementedError

    def batch_of(self, state: State) -> int:
        """The number of what is written now: that of the last step, or of the one that the run ends in."""
        return state.timestamp.batch.value + self._in_step

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self._metrics.update((name, float(value)) for name, value in metrics.items() if name not in _LEFT_OUT)

    def batch_start(self, state: State, logger: Logger) -> None:
        self._in_step = True

    # Composer runs these of loggers after those of callbacks.
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
        """Hands on what has been collected since the last call."""
        if self._metrics:
            metrics, self._metrics = self._metrics, {}
            self.write(state, metrics)
