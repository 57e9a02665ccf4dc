"""Read the chunks of a source in workers, and write their contents in windows (groups that are packed together). A
resumed preparation continues after the last window in the journal."""

from collections import deque
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from typing import Any

from data.base.workers import all_cores, map_in_order
from data.config.dataset import DatasetConfig
from data.examples.preprocessing import is_own
from data.mds.writer import Shards
from data.preparation.progress import Progress, source_bar
from data.preparation.recipe import Recipe, Task

WINDOW_TOKENS = 16 << 20
"""Number of tokens that are packed together, and kept in memory at the same time. A killed run repeats at most this
much work."""
MAX_IN_FLIGHT = 64 << 20
"""Maximum number of units of the source in flight. A few rows of the maximum size reach this limit."""


def write_windows(shards: Shards, recipe: Recipe, config: DatasetConfig) -> Progress:
    """Write all windows that are not written yet. Raises a DataError that lists all invalid rows, unless on_bad_example
    is `drop`."""
    progress = Progress.of_journal(shards.state, recipe.source.total)
    tasks, window = _Tasks(recipe, progress, config), _Window(shards, recipe, progress)
    parts = map_in_order(
        recipe.read, tasks.submit(), tasks.n_workers, tasks.limit, isolated=is_own(config.preprocessing_fn)
    )
    bar = source_bar("Preparing rows", recipe.source.total or None, recipe.source.unit, progress.done)
    with closing(parts), bar:
        for part in parts:
            tasks.finish(part.size)
            progress.add(part)
            bar.update(part.size)
            if _is_refused(progress, config):
                window.clear()
                bar.set_postfix(bad_rows=progress.reading.bad_rows, refresh=False)
            elif part.content is not None:
                window.add(part.content.received())
    if _is_refused(progress, config):
        progress.reading.raise_if_any()
    window.write()
    return progress


def _is_refused(progress: Progress, config: DatasetConfig) -> bool:
    """Whether writing has stopped because invalid rows were found and on_bad_example is `error`."""
    return config.on_bad_example == "error" and progress.reading.bad_rows > 0


class _Tasks:
    """The chunks that have not been read yet. They are submitted to workers, up to a maximum number of tasks and units
    in flight."""

    def __init__(self, recipe: Recipe, progress: Progress, config: DatasetConfig) -> None:
        self._progress, self._config = progress, config
        self._chunks = islice(recipe.source.chunks(), progress.chunks, None)
        n_workers = config.prepare_workers or all_cores()
        self._first = deque(islice(self._chunks, n_workers))
        self.n_workers = max(1, min(n_workers, len(self._first)))
        self._in_flight = 0
        """Number of units of the source in flight."""

    def submit(self) -> Iterator[Task]:
        reading = self._progress.reading
        while (chunk := self._first.popleft() if self._first else next(self._chunks, None)) is not None:
            self._in_flight += chunk.size
            yield Task(
                chunk=chunk,
                form=reading.form,
                first_place=reading.first_place,
                check_only=_is_refused(self._progress, self._config),
            )

    def finish(self, size: int) -> None:
        self._in_flight -= size

    def limit(self) -> int:
        """Maximum number of tasks in flight."""
        # Only one task is in flight until a valid row is found, because this row defines the form of all rows.
        if self._progress.reading.form is None:
            return 1
        return 2 * self.n_workers if self._in_flight < MAX_IN_FLIGHT else 0


class _Window:
    """The contents of chunks that will be packed together."""

    def __init__(self, shards: Shards, recipe: Recipe, progress: Progress) -> None:
        self._shards, self._recipe, self._progress = shards, recipe, progress
        self._contents: list[Any] = []

    def add(self, content: Any) -> None:
        """Add content, and write the window if it is full."""
        self._contents.append(content)
        if sum(each.weight for each in self._contents) >= WINDOW_TOKENS:
            self.write()

    def write(self) -> None:
        if self._contents:
            columns = self._recipe.columns(str(self._progress.reading.form))
            samples = self._recipe.samples(self._contents, self._progress.tally)
            self._shards.write_window(columns, samples, self._progress.for_journal)
            self.clear()

    def clear(self) -> None:
        self._contents.clear()
