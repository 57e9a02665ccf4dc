"""Delete older checkpoints of a save folder. As in a run, the last verified checkpoint is never deleted."""

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.base.console import logger
from data.base.durations import Clock, parse_duration
from data.base.errors import ConfigError, os_errors_named
from data.base.sizes import format_bytes
from train.checkpoint.owner import own, owner_of
from train.checkpoint.retention import Retention
from train.checkpoint.save_folder import batch_of, checkpoints, remove, remove_leftovers
from train.checkpoint.storage.manifest import CONFIG
from train.config.load import load_saved_config
from train.config.schema import TrainConfig
from train.inspection.found import find_save_folder, read_errors_named
from train.inspection.verification import verify


@dataclass(frozen=True, kw_only=True)
class Every:
    """Specifies which older checkpoints are kept in addition to the newest checkpoints."""

    batches: int
    why: str
    """Message that explains how `batches` was derived from --keep_every."""


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """The checkpoints and leftovers that will be deleted, and the checkpoints that are kept."""

    folder: Path
    superseded: list[Path]
    leftovers: list[Path]
    kept: list[Path]
    """Oldest first."""
    every: Every | None
    size: int
    """Total size of the files that will be deleted, in bytes."""

    @property
    def nothing(self) -> bool:
        return not (self.superseded or self.leftovers)

    def lines(self) -> Iterator[str]:
        if self.every is not None:
            yield self.every.why
        for path in self.superseded:
            yield f"delete {path.name} ({format_bytes(_size(path), down=True)})"
        for path in self.leftovers:
            yield f"delete {path.name} ({format_bytes(_size(path), down=True)}): it was not committed"
        yield f"keep {', '.join(path.name for path in self.kept) or 'nothing'}"


def plan(folder: Path, *, keep: int, keep_every: int | None = None) -> Pruning:
    """Plan what to delete, without changing anything. keep: number of newest checkpoints to keep. keep_every: if this
    is N, also keep every N-th checkpoint that the run has saved.

    Raises ConfigError if the path is not a save folder, if the run that owns the folder is alive, or if keep_every is
    set and the save interval is not known.
    """
    with read_errors_named(folder):
        owner = owner_of(folder)
        if owner is not None and owner.alive:
            raise ConfigError(
                f"{folder} belongs to {owner.name}, and that run is alive: wait until it ends, or stop it"
            )
        return _plan(folder, keep, keep_every)


def prune(
    folder: Path,
    *,
    keep: int,
    keep_every: int | None = None,
    progress: Callable[[int], object] = lambda n_bytes: None,
) -> Pruning:
    """Delete the files that `plan` lists, after one of the checkpoints to keep has been read and verified. This process
    owns the folder until the files are deleted. progress is called with the number of bytes that the verification has
    read since the last call. Raises the same errors as `plan`. Also raises ConfigError, and deletes nothing, if none of
    the checkpoints to keep can be verified, and DataError if the disk is too full for a lock file.
    """
    plan(folder, keep=keep, keep_every=keep_every)
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{folder} is not writable, so no checkpoint in it can be deleted")
    with own(folder, "checkpoint.py prune"), os_errors_named(folder, "written"):
        # From here on, no other process saves or deletes checkpoints in this folder.
        planned = _plan(folder, keep, keep_every)
        if planned.superseded:
            _verify_one(planned, progress)
        for path in planned.superseded:
            remove(path)
            logger.info(f"deleted {path.name}")
        for path in remove_leftovers(folder):
            logger.info(f"deleted {path.name}: it was not committed")
    return planned


def _plan(folder: Path, keep: int, keep_every: int | None) -> Pruning:
    found, present = find_save_folder(folder), checkpoints(folder)
    every = _every(folder, present, keep_every) if keep_every is not None and present else None
    retention = Retention(newest=keep, every=every.batches if every is not None else None)
    superseded = retention.superseded(present, batch_of(present[-1])) if present else []
    # A checkpoint whose manifest is missing cannot be loaded. It is not treated as a leftover, because it may be the
    # only checkpoint.
    superseded = [path for path in found.checkpoints if path in superseded or path not in present]
    return Pruning(
        folder=folder,
        superseded=superseded,
        leftovers=found.leftovers,
        kept=[path for path in present if path not in superseded],
        every=every,
        size=sum(map(_size, [*superseded, *found.leftovers])),
    )


def _verify_one(planned: Pruning, progress: Callable[[int], object]) -> None:
    """Raise ConfigError unless at least one of the checkpoints to keep is intact."""
    for path in reversed(planned.kept):
        verified = verify(path, progress)
        for line in verified.lines():
            logger.log(logging.INFO if verified.valid else logging.WARNING, line)
        if verified.valid:
            return
    kept = ", ".join(path.name for path in planned.kept) or "none"
    raise ConfigError(
        f"none of the checkpoints to keep in {planned.folder} ({kept}) could be verified, so nothing was deleted: keep "
        "more checkpoints (--keep), or delete checkpoints manually"
    )


def _every(folder: Path, present: Sequence[Path], keep_every: int) -> Every:
    """Convert --keep_every to a number of batches. Raises ConfigError if the save interval is not known."""
    interval, why = _interval(folder, present)
    batches = keep_every * interval
    what = f"--keep_every {keep_every}: checkpoints at multiples of {batches:,} batches are kept"
    return Every(batches=batches, why=f"{what}, because {why}")


def _interval(folder: Path, present: Sequence[Path]) -> tuple[int, str]:
    """Return the number of batches between two checkpoints of the run, and a text that explains how this number was
    determined."""
    file = folder / CONFIG
    config = load_saved_config(file) if file.is_file() else None
    if config is not None and (batches := _batches(config)) is not None:
        return batches, f"save_interval is {config.save_interval} in {CONFIG}"
    # The last checkpoint of a run may be at any batch. All earlier checkpoints are at multiples of the save interval,
    # which is assumed to be the greatest common divisor of their batches.
    earlier = [batch_of(path) for path in present[:-1]]
    if not (batches := math.gcd(*earlier)):
        raise ConfigError(
            f"--keep_every requires the number of batches between two checkpoints, but {folder} has neither a {CONFIG} "
            "that sets save_interval nor at least two checkpoints: remove --keep_every"
        )
    lacking = f"there is no {CONFIG}" if config is None else f"save_interval, {config.save_interval}, is not in batches"
    return batches, f"{lacking}, and the checkpoints before the newest are at multiples of {batches:,}"


def _batches(config: TrainConfig) -> int | None:
    """Return save_interval in batches; None if the number of batches depends on the data."""
    size = config.global_train_batch_size
    # For units that need rows_per_epoch, None is returned below.
    clock = Clock(tokens_per_batch=size * config.max_seq_len, rows_per_batch=size, rows_per_epoch=0)
    unit, of = parse_duration(config.save_interval)[1], parse_duration(config.max_duration)[1]
    if unit == "ep" or (unit == "dur" and of == "ep"):
        return None
    if unit == "dur":
        clock = clock.until(config.max_duration)
    return clock.batches(config.save_interval)


def _size(path: Path) -> int:
    """Size in bytes. Links are not followed."""
    below = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    return sum(file.lstat().st_size for file in below if file.is_symlink() or file.is_file())
