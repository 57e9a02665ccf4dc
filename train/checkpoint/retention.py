"""Which checkpoints of a save folder are kept. Those that the run saved before it was resumed count too."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from train.checkpoint.save_folder import batch_of

KEEP = "keep"
"""An empty file in a checkpoint that must not be deleted when newer ones are saved."""


@dataclass(frozen=True, kw_only=True)
class Retention:
    """The checkpoints that a run keeps."""

    newest: int
    """Number of checkpoints; -1: all."""
    every: int | None = None
    """In batches: checkpoints at its multiples are kept as well, as long as they contain the file KEEP, even if this
    setting changes later. None: no others are kept."""

    def superseded(
        self,
        present: Sequence[Path],
        batch: int,
        is_pinned: Callable[[Path], bool] = lambda path: (path / KEEP).exists(),
    ) -> list[Path]:
        """The checkpoints, among those present (oldest first), that need not be kept once that of `batch` exists.

        Checkpoints of later batches are not deleted: the run resumed from before them. is_pinned: whether a checkpoint
        contains KEEP.
        """
        if self.newest < 0:
            return []
        counted = [path for path in present if batch_of(path) <= batch]
        older = counted[: max(len(counted) - self.newest, 0)]
        return [path for path in older if (self.every is None or batch_of(path) % self.every) and not is_pinned(path)]
