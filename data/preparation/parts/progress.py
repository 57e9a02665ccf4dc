"""The totals of all parts, and the progress bars of the process that prepares rows and of the processes that wait."""

import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.base.console import is_first, node_logger
from data.base.errors import DataError
from data.base.sizes import progress_bar
from data.examples.examples import Reading
from data.preparation.packing.recipe import Tally
from data.preparation.parts.part import Part
from data.preparation.parts.plan import done, read_plan

BAR_DELAY = 2
"""Seconds before a progress bar appears. Short preparations show no bar."""
MININTERVAL = 0.2 if sys.stderr.isatty() else 30.0
"""Seconds between updates of the progress bar. Updates are rare because output often goes to a log file."""


@dataclass
class Totals:
    """The results of several parts."""

    reading: Reading = field(default_factory=Reading)
    tally: Tally = field(default_factory=Tally)
    files: set[int] = field(default_factory=set)
    """Indices of the files in which rows were found, in the source's `inputs`."""

    def add(self, part: Part) -> None:
        """Add the next part, in the order of the source."""
        self.reading.merge(part.reading)
        self.tally.merge(part.tally)
        self.files |= set(part.files)

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
            sizes = (read_plan(self.folder) or {"sizes": []})["sizes"]
            self.bar.total = sum(sizes) or None
            self.bar.update(sum(sizes[number] for number in done(self.folder) if number < len(sizes)) - self.bar.n)
