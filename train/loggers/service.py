"""Base class of loggers that send metrics to a service, which may fail during training."""

from collections.abc import Callable, Mapping
from typing import Any

from composer.core import State
from composer.loggers import Logger

from data.base import console
from data.secrets.redaction import redacted
from train.loggers.step_logger import StepLogger


class ServiceLogger(StepLogger):
    """Base class of loggers that send metrics to a service. If the service or its library fails, a warning is logged
    once and the run continues. All metrics are also in metrics.jsonl."""

    key: str
    """The config key that the warning contains."""

    def __init__(self) -> None:
        super().__init__()
        self._failed = self._ended = self._complete = False

    def send(self, batch: int, metrics: Mapping[str, float]) -> None:
        raise NotImplementedError

    def send_table(self, batch: int, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        raise NotImplementedError

    def end(self, *, complete: bool) -> None:
        """Send the remaining metrics. complete: whether the run completed all of its steps."""
        raise NotImplementedError

    def write(self, state: State, metrics: Mapping[str, float]) -> None:
        self._try(lambda: self.send(self.batch_of(state), metrics))

    def log_table(
        self, columns: list[str], rows: list[list[Any]], name: str = "Table", step: int | None = None
    ) -> None:
        self._try(lambda: self.send_table(step or 0, name, columns, rows))

    def fit_end(self, state: State, logger: Logger) -> None:
        super().fit_end(state, logger)
        self._complete = True

    def close(self, state: State, logger: Logger) -> None:
        super().close(state, logger)
        if not self._ended:  # Composer may call close again when the interpreter exits
            self._ended = True
            self._try(lambda: self.end(complete=self._complete))

    def _try(self, do: Callable[[], None]) -> None:
        try:
            do()
        except Exception as error:  # any error of the network or the library
            if not self._failed:
                self._failed = True
                text = redacted(f"{type(error).__name__}: {error}")
                console.logger.warning(f"{self.key}: some metrics could not be sent ({text}); the run continues")
