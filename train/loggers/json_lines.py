"""metrics.jsonl, the local log of every run."""

import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from composer.core import State
from composer.loggers import Logger

from data.base import console
from data.base.errors import cannot_be
from train.checkpoint.save_folder import METRICS
from train.loggers.step_logger import StepLogger
from train.supervision.record_file import append_line

_MOST_WAITING = 100_000
"""Maximum number of lines that are kept until they can be written. Older lines are dropped."""


class JsonLines(StepLogger):
    """Writes a line to metrics.jsonl at the end of each step and each evaluation: {batch, time, tok, metrics}.

    If a write fails, for example because the disk is full, this class warns once, and retries when the next line is
    written.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._file = folder / METRICS
        self._waiting: deque[dict[str, Any]] = deque(maxlen=_MOST_WAITING)
        self._warned = False

    def write(self, state: State, metrics: Mapping[str, float]) -> None:
        batch, tokens = self.batch_of(state), state.timestamp.token.value
        self._waiting.append({"batch": batch, "time": round(time.time(), 3), "tok": tokens, "metrics": metrics})
        try:
            while self._waiting:
                append_line(self._file, self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            if not self._warned:
                self._warned = True
                text = cannot_be("written", self._file, error)
                console.logger.warning(f"{text}. The run continues, and the lines are written as soon as possible")

    def close(self, state: State, logger: Logger) -> None:
        super().close(state, logger)
        if self._waiting:
            console.logger.warning(f"{self._file}: the last {len(self._waiting):,} lines could not be written")
            self._waiting.clear()
