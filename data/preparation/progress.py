"""The progress of a preparation. The progress is saved in the journal. The process that prepares the rows, and the
processes that wait for it, show a progress bar."""

import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.base.console import is_first, node_logger
from data.base.errors import DataError
from data.base.sizes import progress_bar
from data.examples.examples import Reading
from data.mds.writer import read_journal
from data.preparation.recipe import Part, Tally

BAR_DELAY = 2
"""Seconds before a progress bar appears. Short preparations show no bar."""
MININTERVAL = 0.2 if sys.stderr.isatty() else 30.0
"""Seconds between updates of the progress bar. Updates are rare because output often goes to a log file."""


@dataclass
class Progress:
    """The progress in the source and the results so far, as saved in the journal."""

    chunks: int = 0
    done: int = 0
    """Number of completed units of the source."""
    total: int = 0
    reading: Reading = field(default_factory=Reading)
    tally: Tally = field(default_factory=Tally)

    @classmethod
    def of_journal(cls, state: dict[str, Any], total: int) -> "Progress":
        if not state:
            return cls(total=total)
        reading, tally = Reading(), Tally()
        for target, values in ((reading, state["reading"]), (tally, state["tally"])):
            for name, value in values.items():
                setattr(target, name, type(getattr(target, name))(value) if isinstance(value, dict) else value)
        for kind in reading.kinds:  # journals written by earlier versions do not contain locations
            reading.first.setdefault(kind, kind)
            reading.places.setdefault(kind, ["an earlier row"])
        return cls(state["chunks"], state["done"], total, reading, tally)

    def for_journal(self) -> dict[str, Any]:
        return {**vars(self), "reading": vars(self.reading), "tally": vars(self.tally)}

    def add(self, part: Part) -> None:
        """Add the result of a chunk."""
        self.chunks += 1
        self.done += part.size
        self.reading.merge(part.reading)
        self.tally.merge(part.tally)

    def dropped(self) -> dict[str, int]:
        """Reason -> number of rows that were dropped for this reason."""
        dropped = {"bad rows": self.reading.bad_rows, "preprocessing_fn returned None": self.reading.n_dropped}
        return {reason: count for reason, count in (self.tally.dropped | dropped).items() if count}


def source_bar(desc: str, total: int | None, unit: str, done: int = 0) -> Any:
    """A progress bar in units of the source."""
    return progress_bar(desc, total, unit=unit, initial=done, delay=BAR_DELAY, mininterval=MININTERVAL)


class Waiting:
    """Called every second while another process prepares the folder. Only one rank per node shows the progress."""

    def __init__(self, folder: Path, unit: str) -> None:
        self.folder, self.unit = folder, unit
        self.shown = is_first()
        self.bar: Any = None

    def __call__(self) -> None:
        if not self.shown:
            return
        if self.bar is None:
            node_logger.info(f"Waiting for another process to prepare the same rows ({self.folder})")
            self.bar = source_bar("Prepared by another process", None, self.unit)
        with suppress(DataError):  # the preparation has just finished
            state = (read_journal(self.folder) or {}).get("state") or {"done": 0, "total": 0}
            self.bar.total = state["total"] or None
            self.bar.update(state["done"] - self.bar.n)
