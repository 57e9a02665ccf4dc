"""Delete the checkpoints that a new checkpoint supersedes, once at least one of the remaining checkpoints is
verified."""

from collections.abc import Sequence
from pathlib import Path

from data.base.console import logger
from data.base.errors import reason
from train.checkpoint.retention import KEEP, Retention
from train.checkpoint.save_folder import checkpoints, remove
from train.checkpoint.saving.ranks import Ranks
from train.checkpoint.storage.files import corruption


class Pruning:
    """Deletes superseded checkpoints of one run after each save."""

    def __init__(self, folder: Path, retention: Retention, verified: Path | None) -> None:
        """verified: the checkpoint that the run resumes from, if any. It counts as verified."""
        self._folder, self._retention = folder, retention
        self._verified: set[Path] = set() if verified is None else {verified}

    def pin(self, checkpoint: Path, batch: int) -> None:
        """Mark the checkpoint of this batch if it must be kept. Must be called on one rank only."""
        every = self._retention.every
        if every is not None and batch % every == 0:
            (checkpoint / KEEP).touch()

    def after(self, batch: int, files: Sequence[str], checkpoint: Path, ranks: Ranks) -> None:
        """Delete the checkpoints that the checkpoint of this batch supersedes, provided that a verified checkpoint
        remains. Every rank must call this.

        files: the files that this rank has written.
        """
        superseded, verify = ranks.on_first(lambda: self._plan(batch))
        if verify:
            # Each rank verifies its own files. They are read from the disk, and not from the page cache.
            found = ranks.on_each(lambda: corruption(checkpoint, files))
            if corrupt := [error for error in found if error is not None]:
                logger.warning(f"{corrupt[0]}. Earlier checkpoints are kept")
                return
            self._verified.add(checkpoint)
        ranks.on_first(lambda: _remove(superseded))

    def _plan(self, batch: int) -> tuple[list[Path], bool]:
        present = checkpoints(self._folder)
        superseded = self._retention.superseded(present, batch)
        return superseded, bool(superseded) and not self._verified & ({*present} - {*superseded})


def _remove(superseded: Sequence[Path]) -> None:
    """Delete checkpoints. If a checkpoint cannot be deleted, the deletion is retried after the next save."""
    for path in superseded:
        try:
            remove(path)
        except OSError as error:
            logger.warning(f"{path} is superseded, but cannot be deleted: {reason(error)}")
