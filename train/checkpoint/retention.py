"""Which checkpoints of a save folder are kept, by what is in it: those of the run's earlier starts count too."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from train.checkpoint.save_folder import batch_of

KEEP = "keep"
"""An empty file in a checkpoint, which is then never deleted for a newer one."""


@dataclass(frozen=True, kw_only=True)
class Retention:
    """What a run keeps."""

    newest: int
    """Number of checkpoints; -1: all."""
    every: int | None = None
    """Batches: a checkpoint of a multiple of it is kept besides, as long as it has the file KEEP, whatever the settings
    are by then. None: no more are kept."""

    def superseded(
        self,
        present: Sequence[Path],
        batch: int,
        is_pinned: Callable[[Path], bool] = lambda path: (path / KEEP).exists(),
    ) -> list[Path]:
        """The checkpoints, of those present (oldest first), that are not kept once there is one of `batch`.

        Those of later batches are left alone: the run has resumed from one before them. is_pinned: has it KEEP?
        """
        if self.newest < 0:
            return []
        counted = [path for path in present if batch_of(path) <= batch]
        older = counted[: max(len(counted) - self.newest, 0)]
        return [path for path in older if (self.every is None or batch_of(path) % self.every) and not is_pinned(path)]
