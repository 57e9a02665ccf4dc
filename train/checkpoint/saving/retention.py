"""Which checkpoints of a save folder are kept, by what is in it: those of the run's earlier starts count too."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.base.console import logger
from data.base.errors import reason
from train.checkpoint.save_folder import batch_of, checkpoints, remove
from train.checkpoint.saving.ranks import Ranks
from train.checkpoint.storage.files import corruption

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

    def superseded(self, present: Sequence[Path], batch: int) -> list[Path]:
        """The checkpoints, of those present (oldest first), that are not kept once there is one of `batch`.

        Those of later batches are left alone: the run has resumed from one before them.
        """
        if self.newest < 0:
            return []
        counted = [path for path in present if batch_of(path) <= batch]
        older = counted[: max(len(counted) - self.newest, 0)]
        return [
            path for path in older if (self.every is None or batch_of(path) % self.every) and not (path / KEEP).exists()
        ]


class Pruning:
    """Keeps and deletes the checkpoints of one run after each save."""

    def __init__(self, folder: Path, retention: Retention, verified: Path | None) -> None:
        """verified: the checkpoint that the run resumes from."""
        self._folder, self._retention = folder, retention
        self._verified: set[Path] = set() if verified is None else {verified}

    def after(self, checkpoint: Path, batch: int, files: Sequence[str], ranks: Ranks) -> list[Path]:
        """Marks the checkpoint of this batch where it is to stay, and deletes what is superseded unless nothing would
        be left that is known to be right. Returns what was deleted. Every rank has to call it.

        files: those that this rank has written.
        """
        superseded, verify = ranks.on_first(lambda: self._plan(checkpoint, batch))
        if verify:
            # Each rank reads what it has written, from the disk and not from memory.
            found = ranks.on_each(lambda: corruption(checkpoint, files))
            if corrupt := [error for error in found if error is not None]:
                logger.warning(f"{corrupt[0]}. The checkpoints before it are kept")
                return []
            self._verified.add(checkpoint)
        return ranks.on_first(lambda: _remove(superseded))

    def _plan(self, checkpoint: Path, batch: int) -> tuple[list[Path], bool]:
        every = self._retention.every
        if every is not None and batch % every == 0:
            (checkpoint / KEEP).touch()
        present = checkpoints(self._folder)
        superseded = self._retention.superseded(present, batch)
        return superseded, bool(superseded) and not self._verified & ({*present} - {*superseded})


def _remove(superseded: Sequence[Path]) -> list[Path]:
    """What cannot be deleted now is superseded the next time as well."""
    removed = []
    for path in superseded:
        try:
            remove(path)
        except OSError as error:
            logger.warning(f"{path} is superseded, but cannot be deleted: {reason(error)}")
        else:
            removed.append(path)
    return removed
