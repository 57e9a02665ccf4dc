"""What happened in a run that was not planned: on the console, in the loggers and in record.jsonl."""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from composer.loggers import Logger
from composer.utils import dist

from data.base import console
from data.base.errors import ConfigError, DataError
from train.supervision.record_file import add_line


class Events:
    """Reports the events of one run."""

    def __init__(self, folder: Path | None) -> None:
        """folder: the run's save folder."""
        self._folder = folder
        self._seen: Counter[str] = Counter()

    def report(self, kind: str, batch: int, message: str, *, logger: Logger | None = None, **details: Any) -> None:
        """On rank 0 (nothing on others, so every rank may call it; it waits for none): a warning on the console, the
        metric `events/KIND`, which counts those of this process, and a line of record.jsonl. details can be JSON."""
        if dist.get_global_rank() != 0:
            return
        self._seen[kind] += 1
        console.logger.warning(message)
        if logger is not None:
            logger.log_metrics({f"events/{kind}": self._seen[kind]})
        self.record(kind, batch, message, **details)

    def record(self, kind: str, batch: int, message: str, **details: Any) -> None:
        """On rank 0: the line of record.jsonl alone, of what is shown elsewhere."""
        if self._folder is not None and dist.get_global_rank() == 0:
            line: Mapping[str, Any] = {"batch": batch, "event": kind, "message": message, **details}
            # What the event is about must not be replaced by a full disk.
            with suppress(ConfigError, DataError):
                add_line(self._folder, line)
