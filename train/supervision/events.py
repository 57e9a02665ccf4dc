"""Unplanned events of a run: reported on the console, in the loggers and in record.jsonl."""

from collections import Counter
from contextlib import suppress
from typing import Any

from composer.loggers import Logger
from composer.utils import dist

from data.base import console
from data.base.errors import ConfigError, DataError
from train.supervision.record_file import Record


class Events:
    """Reports the events of one run."""

    def __init__(self, record: Record | None) -> None:
        self._record = record
        self.started = False
        """Whether the start line of this process has been written to record.jsonl. An end line is written only if there
        is a start line."""
        self._seen: Counter[str] = Counter()

    def report(
        self,
        kind: str,
        batch: int,
        message: str,
        *,
        logger: Logger | None = None,
        on_console: bool = True,
        **details: Any,
    ) -> None:
        """Report an event: a warning on the console, the metric `events/KIND` and a line of record.jsonl.

        Every rank may call this method; ranks other than 0 do nothing, and no rank waits for another. The metric counts
        the events of this kind in this process. Set on_console to False if the run ends with the same message on the
        console. details must be JSON values."""
        if dist.get_global_rank() != 0:
            return
        self._seen[kind] += 1
        if on_console:
            console.logger.warning(message)
        if logger is not None:
            logger.log_metrics({f"events/{kind}": self._seen[kind]})
        self.record(kind, batch, message, **details)

    def record(self, kind: str, batch: int, message: str, **details: Any) -> None:
        """On rank 0, add the event to record.jsonl only, because its message is shown elsewhere."""
        self.note(batch, event=kind, message=message, **details)

    def note(self, batch: int, *, any_rank: bool = False, **fields: Any) -> None:
        """Add a line to record.jsonl on rank 0, or, if any_rank is set, on every rank that calls this. File system
        errors are ignored."""
        if self._record is not None and (any_rank or dist.get_global_rank() == 0):
            # A full disk must not hide the event itself.
            with suppress(ConfigError, DataError):
                self._record.add({"batch": batch, **fields})
