"""Which checkpoints of a save folder are kept. Checkpoints that the run saved before it was resumed are included."""

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
    """Number of newest checkpoints to keep; -1 keeps all."""
    every: int | None = None
    """In batches. Checkpoints at multiples of this number are kept as well. They are marked with the file KEEP, so they
    are still kept if this setting changes later. None keeps only the newest."""

    def superseded(
        self,
        present: Sequence[Path],
        batch: int,
        is_pinned: Callable[[Path], bool] = lambda path: (path / KEEP).exists(),
    ) -> list[Path]:
        """The checkpoints in `present` (oldest first) that need not be kept once the checkpoint of `batch` exists.
        Checkpoints of later batches are kept: they exist if the run resumed from an earlier checkpoint. is_pinned:
        whether a checkpoint contains KEEP.
        """
        if self.newest < 0:
            return []
        counted = [path for path in present if batch_of(path) <= batch]
        older = counted[: max(len(counted) - self.newest, 0)]
        return [path for path in older if (self.every is None or batch_of(path) % self.every) and not is_pinned(path)]
