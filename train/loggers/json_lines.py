"""metrics.jsonl: what every run logs, on disk."""

import time
from collections.abc import Mapping
from pathlib import Path

from composer.core import State

from data.base.errors import DataError, cannot_be, is_full
from train.checkpoint.save_folder import METRICS
from train.loggers.step_logger import StepLogger
from train.supervision.record_file import append_line


class JsonLines(StepLogger):
    """Adds a line to metrics.jsonl for each step and each evaluation, on disk when the step ends: {batch, time, tok,
    metrics}."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._file = folder / METRICS

    def write(self, state: State, metrics: Mapping[str, float]) -> None:
        batch, tokens = state.timestamp.batch.value, state.timestamp.token.value
        line = {"batch": batch, "time": round(time.time(), 3), "tok": tokens, "metrics": metrics}
        try:
            append_line(self._file, line)
        except OSError as error:
            if is_full(error):
                raise
            raise DataError(f"{cannot_be('written', self._file, error)}: start again with autoresume=true") from None
