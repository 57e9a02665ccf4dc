"""A logger destination that shows steps and evaluations on the console, as lines and on the live bar."""

import time
from collections.abc import Mapping

from composer.core import State
from composer.loggers import Logger

from data.base import console
from data.base.durations import format_seconds
from data.mixing.row_plan import RowPlan
from train.console.bar import LiveBar
from train.console.columns import StepTable, eval_text, shown
from train.loggers.step_logger import StepLogger

_PARTS = {
    "loss": "loss {}",
    "left": "{} left",
    "tok/s": "{} tok/s",
    "lr": "lr {}",
    "grad": "grad {}",
    "MFU": "MFU {}",
    "FLOP/s": "{}FLOP/s",
    "lbl": "lbl {}",
    "GiB": "{} GiB",
}
"""The format of each part of the progress bar, by column header, most important first."""


class ConsoleLines(StepLogger):
    """Prints, on rank 0, a line for the first step, every `interval` steps, the last step, and each evaluation."""

    def __init__(self, plan: RowPlan, max_batches: int, *, interval: int | None, bar: LiveBar | None) -> None:
        """interval: None prints no lines. bar: the bar to update at each step, or None."""
        super().__init__()
        self._plan, self._max_batches, self._interval, self._bar = plan, max_batches, interval, bar
        self._stages = any(name for name, *_ in plan.stages())
        self._table = StepTable(max_batches, stages=self._stages)
        self._first: int | None = None
        self._eval_began = 0.0
        self.metrics: dict[str, float] = {}
        """The newest value of each metric."""
        self.evaluation: dict[str, float] = {}
        """The metrics of the newest evaluation."""
        self.batch = 0

    def write(self, state: State, metrics: Mapping[str, float]) -> None:
        self.metrics.update(metrics)
        self.batch = state.timestamp.batch.value

    def batch_end(self, state: State, logger: Logger) -> None:
        super().batch_end(state, logger)
        batch, tokens = state.timestamp.batch.value, int(state.timestamp.token.value)
        is_first, self._first = self._first is None, self._first or batch
        is_last = batch == self._max_batches
        if self._interval is not None and (is_first or is_last or batch % self._interval == 0):
            for line in self._table.lines(batch, tokens, self.metrics, self._plan.stage(batch - 1)):
                console.logger.info(line)
        self._draw(batch, now=is_last)

    def eval_start(self, state: State, logger: Logger) -> None:
        self.flush(state)
        self._eval_began = time.monotonic()

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        batch, total = state.eval_timestamp.batch.value, state.dataloader_len
        self._draw(state.timestamp.batch.value, f"evaluation {batch}{f'/{int(total)}' if total is not None else ''}")

    def eval_end(self, state: State, logger: Logger) -> None:
        self.evaluation = {key: value for key, value in self._metrics.items() if key.startswith("metrics/")}
        super().eval_end(state, logger)
        self._draw(state.timestamp.batch.value, now=True)
        if self._interval is not None or self._bar is not None:
            took = format_seconds(time.monotonic() - self._eval_began)
            batch = state.timestamp.batch.value
            console.logger.info(f"batch {batch}: evaluation: {eval_text(self.evaluation)} ({took})")

    def _draw(self, batch: int, doing: str = "", *, now: bool = False) -> None:
        if self._bar is None:
            return
        cells = {column.header: column.show(self.metrics[column.metric]) for column in shown(self.metrics)}
        parts = [doing, f"{batch}/{self._max_batches}"]
        parts += [_PARTS[header].format(cells[header]) for header in _PARTS if header in cells]
        parts += [self._plan.stage(max(batch - 1, 0))]
        self._bar.update(batch, list(filter(None, parts)), now=now)
