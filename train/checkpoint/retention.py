"""Which checkpoints of a save folder are kept, by what is in it: those of the run's earlier starts count too."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from train.checkpoint.save_folder import PART, batch_of


@dataclass(frozen=True, kw_only=True)
class Retention:
    """What a run keeps."""

    newest: int
    """Number of checkpoints; -1: all."""
    every: int | None = None
    """Batches: a checkpoint of a multiple of it is kept besides. None: of the older ones none."""

    def superseded(self, present: Sequence[Path], batch: int) -> list[Path]:
        """The checkpoints, of those present (oldest first), that are not kept once there is one of `batch`.

        Those of later batches are left alone: the run has resumed from one before them.
        """
        if self.newest < 0:
            return []
        counted = [path for path in present if batch_of(path) <= batch]
        older = counted[: max(len(counted) - self.newest, 0)]
        return [path for path in older if self.every is None or batch_of(path) % self.every]


def remove(checkpoint: Path) -> None:
    """At once: what a killed process leaves of it is no checkpoint. Raises OSError."""
    if checkpoint.is_dir():
        gone = checkpoint.with_name(f"{PART}removed-{checkpoint.name}")
        checkpoint.rename(gone)
        shutil.rmtree(gone)
    else:
        checkpoint.unlink(missing_ok=True)
