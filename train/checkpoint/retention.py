"""Decide which checkpoints of a save folder are kept. The checkpoints that the run saved before it was resumed are also
considered."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from train.checkpoint.save_folder import batch_of

KEEP = "keep"
"""Name of an empty file that marks a checkpoint. A marked checkpoint is not deleted when newer ones are saved."""


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Specifies which checkpoints a run keeps."""

    newest: int
    """Number of newest checkpoints to keep; -1 keeps all."""
    every: int | None = None
    """Also keep checkpoints at multiples of this number of batches. They are marked with the file KEEP, so that they
    are still kept if this setting changes later. None keeps only the checkpoints that `newest` keeps."""

    def superseded(
        self,
        present: Sequence[Path],
        batch: int,
        is_pinned: Callable[[Path], bool] = lambda path: (path / KEEP).exists(),
    ) -> list[Path]:
        """Return the checkpoints in `present` (oldest first) that are no longer needed once the checkpoint of `batch`
        exists. Checkpoints of later batches, which exist if the run resumed from an earlier checkpoint, are kept.
        is_pinned: returns whether a checkpoint contains KEEP.
        """
        if self.newest < 0:
            return []
        counted = [path for path in present if batch_of(path) <= batch]
        older = counted[: max(len(counted) - self.newest, 0)]
        return [path for path in older if (self.every is None or batch_of(path) % self.every) and not is_pinned(path)]
