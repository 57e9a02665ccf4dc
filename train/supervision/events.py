"""What happened in a run that was not planned: on the console, in the loggers and in record.jsonl."""

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
        """Whether the record has the line of this process's start: then it is to have one of its end."""
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
        """On rank 0 (nothing on others, so every rank may call it; it waits for none): a warning on the console unless
        the run ends with the message, the metric `events/KIND`, which counts those of this process, and a line of
        record.jsonl. details can be JSON."""
        if dist.get_global_rank() != 0:
            return
        self._seen[kind] += 1
        if on_console:
            console.logger.warning(message)
        if logger is not None:
            logger.log_metrics({f"events/{kind}": self._seen[kind]})
        self.record(kind, batch, message, **details)

    def record(self, kind: str, batch: int, message: str, **details: Any) -> None:
        """On rank 0: the line of record.jsonl alone, of what is shown elsewhere."""
        self.note(batch, event=kind, message=message, **details)

    def note(self, batch: int, *, any_rank: bool = False, **fields: Any) -> None:
        """On rank 0, or on any rank that calls it: a line of record.jsonl, unless the file system refuses it."""
        if self._record is not None and (any_rank or dist.get_global_rank() == 0):
            # What it is about must not be replaced by a full disk.
            with suppress(ConfigError, DataError):
                self._record.add({"batch": batch, **fields})
