"""Metrics that a run logs, step by step."""

from typing import Any

from composer.core import State
from composer.loggers import Logger, LoggerDestination


class Logged(LoggerDestination):
    """Collects the metrics of each step by name and by the number of batches before it."""

    def __init__(self, prefix: str) -> None:
        """prefix: collect only metrics whose names have this prefix."""
        self.prefix = prefix
        self.metrics: dict[int, dict[str, float]] = {}

    def fit_start(self, state: State, logger: Logger) -> None:
        logger.destinations = (*logger.destinations, self)

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        assert step is not None
        found = {name: value for name, value in metrics.items() if name.startswith(self.prefix)}
        if found:
            self.metrics.setdefault(step, {}).update(found)
