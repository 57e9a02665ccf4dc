"""Adds checkpoints, evaluations and stages to record.jsonl, which model cards and reports read."""

from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger

from data.base import console
from data.base.errors import ConfigError, DataError
from data.base.versions import versions
from data.mixing.row_plan import RowPlan
from train.callbacks.stream_monitor import StreamMonitor
from train.checkpoint.save_folder import RECORD
from train.distributed.first_rank import on_first_rank
from train.supervision.record_file import Record


class RunRecord(Callback):
    """Adds a line to record.jsonl for every checkpoint (rows and tokens of each stream), every evaluation, and the
    start of every stage.

    This callback runs before CheckpointSaver, which saves every `interval` batches and after the last batch, so every
    checkpoint has a line. If a run is killed, record.jsonl may contain the same line twice, or a line for a checkpoint
    that does not exist.
    """

    def __init__(
        self, record: Record, plan: RowPlan, interval: int | None, last_batch: int, *, stop_on_error: bool = True
    ) -> None:
        """interval: batches between two checkpoints; None for a run without checkpoints. stop_on_error: if a write
        fails, raise on every rank (see Record.add); otherwise warn once."""
        self.record, self.plan, self.interval, self.last_batch = record, plan, interval, last_batch
        self._stop_on_error, self._warned = stop_on_error, False
        self._newest: int | None = None

    def batch_start(self, state: State, logger: Logger) -> None:
        batch = state.timestamp.batch.value
        stage = self.plan.stage(batch)
        if stage and (batch == 0 or stage != self.plan.stage(batch - 1)):
            self._add({"batch": batch, "event": "stage", "name": stage})

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        batch = state.timestamp.batch.value
        if self.interval is not None and (batch % self.interval == 0 or batch == self.last_batch):
            self.note_checkpoint(state)

    def note_checkpoint(self, state: State) -> None:
        """Add the line for a checkpoint of the current batch, unless it has already been added. Every rank must call
        this."""
        batch = state.timestamp.batch.value
        if batch == self._newest:
            return
        self._newest = batch
        rows = dict(zip(self.plan.names, self.plan.counts(batch).tolist(), strict=True))
        monitor = next((found for found in state.callbacks if isinstance(found, StreamMonitor)), None)
        tokens = monitor.tokens if monitor is not None else {}
        self._add({"batch": batch, "rows": rows, "tokens": tokens, "versions": versions()})

    def eval_end(self, state: State, logger: Logger) -> None:
        metrics = {name: float(value) for name, value in state.eval_metric_values.items()}
        self._add({"batch": state.timestamp.batch.value, "eval": metrics})

    def _add(self, line: dict[str, Any]) -> None:
        try:
            on_first_rank(lambda: self.record.add(line))
        except (ConfigError, DataError) as error:
            if self._stop_on_error:
                raise
            if not self._warned:
                self._warned = True
                console.logger.warning(f"{error}. The run continues without further lines in {RECORD}")
