"""Saves checkpoints one at a time: in a thread, while training continues, or at once."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

import torch
from composer.utils import dist
from torch import Tensor

from data.base.console import logger
from data.base.sizes import format_bytes
from train.checkpoint.saving.pace import Pace
from train.checkpoint.saving.pruning import Pruning
from train.checkpoint.saving.ranks import Ranks, for_others, mesh_of
from train.checkpoint.saving.save import Saved, n_bytes, save_checkpoint
from train.checkpoint.saving.snapshot import Snapshot, snapshot_size, whole
from train.checkpoint.storage.manifest import Manifest
from train.hardware.memory import free_cpu_memory

_USABLE = 0.9
"""Of the memory that is free on a node, what copies may take."""
_ROUND_SECONDS = 0.5
"""Between two exchanges of ranks that wait."""
_WAITS_SECONDS = 1.0
"""For which a save may wait for the one before it without a word."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What is known of a checkpoint when its save has ended. The same on every rank."""

    checkpoint: Path
    batch: int
    needed: int
    """Bytes of its tensors."""
    refused: OSError | None
    """What a file system refused: then there is no such checkpoint."""
    seconds: float
    """That the save took, on this rank."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a checkpoint holds."""

    tensors: Mapping[str, Tensor]
    state: bytes
    """Rank 0's counts."""
    config: str
    about: Manifest
    gather: bool
    """Rank 0 gathers the tensors and writes them whole."""


@dataclass(kw_only=True)
class _Pending:
    checkpoint: Path
    batch: int
    needed: int
    saved: Future[Saved] = field(default_factory=Future)
    began: float = field(default_factory=time.monotonic)
    ended: float = math.nan


class BackgroundSaver:
    """Saves checkpoints of one run. Each method is for the main thread of every rank.

    The thread talks to those of other ranks by `ranks`, and `told` is for the main threads: neither waits for what the
    other does. Whatever fails in the thread is known to all ranks at the same call of `poll` or `wait`.
    """

    def __init__(self, *, ranks: Ranks, told: Ranks, confirm: Callable[[], None], pruning: Pruning) -> None:
        """confirm: see save_checkpoint."""
        self.on_committed: list[Callable[[Path], None]] = []
        """Called on every rank, in the thread that saves, with each checkpoint that is committed."""
        self._ranks, self._told, self._confirm, self._pruning = ranks, told, confirm, pruning
        self._snapshot, self._pace = Snapshot(), Pace()
        self._fits: bool | None = None
        """Whether there is memory for it."""
        self._pending: _Pending | None = None
        self._said_that_it_waits = False

    @property
    def is_saving(self) -> bool:
        """Whether there is a checkpoint that neither `poll` nor `wait` has returned."""
        return self._pending is not None

    def save(self, checkpoint: Path, content: Content, *, background: bool) -> Written | None:
        """Begins to save a checkpoint, which `poll` or `wait` will return. Returns the one before it if that was still
        being saved: it is waited for.

        background: what a file system refuses is known later, and the tensors may change as soon as this returns, if
        there is memory for a copy.
        """
        before = self._wait_for_the_one_before(content.about.batch)
        writes = self._writes(content)
        if background and self._fits is None:
            self._fits = self._look_for_room(snapshot_size(content.tensors, gather=content.gather) if writes else 0)
        background = background and bool(self._fits)
        if background or (content.gather and self._fits):  # what is gathered is not to be there twice
            tensors = self._snapshot.take(content.tensors, gather=content.gather, keep=writes)
        else:
            tensors = _gathered(content.tensors, keep=writes) if content.gather else content.tensors
        self._pending = pending = _Pending(
            checkpoint=checkpoint, batch=content.about.batch, needed=n_bytes(content.tensors)
        )
        self._pace.begin(background=background)
        if background:
            device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
            Thread(
                target=self._run, args=(pending, tensors, content, device), name="checkpoint-writer", daemon=True
            ).start()
        else:
            self._run(pending, tensors, content, None)
        return before

    def poll(self) -> Written | None:
        """Of the checkpoint that is being saved, if that has ended on every rank. Waits for nothing. For every step.

        Raises, the same on every rank, what failed but for what a file system refuses.
        """
        if self._pending is None:
            return None
        saved = self._pending.saved
        failed = saved.done() and saved.exception() is not None
        unfinished, failed = self._told.any(not saved.done(), failed)
        # Where the thread of one rank has failed, those of others may wait for it without end.
        return self._conclude() if failed or not unfinished else None

    def wait(self) -> Written | None:
        """Waits until nothing is being saved. Raises as `poll` does."""
        written = None
        self._pace.hurry()
        while self._pending is not None:
            with suppress(TimeoutError):
                self._pending.saved.exception(_ROUND_SECONDS)
            written = self.poll()
        return written

    def abandon(self, seconds: float) -> None:
        """For a run that ends with an error, perhaps on this rank alone: the threads of all ranks go on with what is
        being saved, and this waits for it, with a time limit because other ranks may be gone. Raises nothing."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        self._pace.hurry()
        if not pending.saved.done():
            logger.info(f"the run ends with an error once the checkpoint of batch {pending.batch} is written")
        try:
            error = pending.saved.exception(seconds)
            error = error or pending.saved.result().refused
        except TimeoutError:
            error = TimeoutError(f"not after {seconds:g} s")
        if error is not None and not isinstance(error, SystemExit):
            logger.warning(f"the checkpoint of batch {pending.batch} was not saved: {error}")

    def _run(self, pending: _Pending, tensors: Mapping[str, Tensor], content: Content, device: int | None) -> None:
        try:
            if device is not None:
                torch.cuda.set_device(device)  # each thread begins with the first GPU
            pending.saved.set_result(self._save(pending, tensors, content))
        except BaseException as error:
            pending.saved.set_exception(error)
            if not isinstance(error, Exception):
                raise

    def _save(self, pending: _Pending, tensors: Mapping[str, Tensor], content: Content) -> Saved:
        checkpoint, ranks = pending.checkpoint, self._ranks
        saved = save_checkpoint(
            checkpoint,
            tensors,
            state=content.state,
            config=content.config,
            about=content.about,
            confirm=self._confirm,
            ranks=ranks,
            rest=self._pace.rest,
        )
        pending.ended = time.monotonic()
        if saved.refused is None:
            with _warned_of(checkpoint):
                ranks.on_first(lambda: self._pruning.pin(checkpoint, pending.batch))
            for committed in self.on_committed:
                committed(checkpoint)
            with _warned_of(checkpoint):
                self._pruning.after(pending.batch, saved.files, checkpoint, ranks)
        return saved

    def _conclude(self) -> Written:
        assert self._pending is not None
        pending, self._pending = self._pending, None
        error = pending.saved.exception() if pending.saved.done() else None
        # Not an error that ends this process alone, such as a signal's.
        if error is not None and not isinstance(error, Exception):
            raise error
        found = self._told.gather(None if error is None else for_others(error))
        if (first := next((each for each in found if each is not None), None)) is not None:
            raise first
        return Written(
            checkpoint=pending.checkpoint,
            batch=pending.batch,
            needed=pending.needed,
            refused=pending.saved.result().refused,
            seconds=pending.ended - pending.began,
        )

    def _wait_for_the_one_before(self, batch: int) -> Written | None:
        if (pending := self._pending) is None:
            return None
        self._pace.hurry()
        try:
            pending.saved.exception(_WAITS_SECONDS)
        except TimeoutError:
            if not self._said_that_it_waits:
                logger.info(
                    f"the checkpoint of batch {pending.batch} is still being written: the run waits before it saves "
                    f"that of batch {batch} (this is said once; a longer save_interval avoids it)"
                )
            self._said_that_it_waits = True
        return self.wait()

    def _writes(self, content: Content) -> bool:
        """Whether this rank is one of those that write tensors."""
        return self._ranks.is_first if content.gather else self._ranks.writers(mesh_of(content.tensors.values()))[1]

    def _look_for_room(self, mine: int) -> bool:
        """Whether the copies of all ranks of every node fit into the memory that is free there. mine: bytes of this
        rank's."""
        needed: dict[int, int] = {}
        free: dict[int, float] = {}
        # Named by its first rank: torchrun sets no NODE_RANK.
        this_node = dist.get_global_rank() - dist.get_local_rank()
        for node, size, there in self._told.gather((this_node, mine, free_cpu_memory())):
            needed[node] = needed.get(node, 0) + size
            free[node] = min(there, free.get(node, there))
        node = max(needed, key=lambda node: needed[node] - _USABLE * free[node])
        if needed[node] <= _USABLE * free[node]:
            return True
        logger.warning(
            f"checkpoints are saved while training waits: a copy takes {format_bytes(needed[node])} of the memory of "
            f"rank {node}'s node, which has {format_bytes(free[node], down=True)} free, of which at most {_USABLE:.0%} "
            "are used"
        )
        return False


@contextmanager
def _warned_of(checkpoint: Path) -> Iterator[None]:
    """Around what is done with a checkpoint that is committed: it does not fail any more."""
    try:
        yield
    except OSError as error:
        logger.warning(f"{checkpoint} is saved, but older ones may be kept that are superseded: {error}")


def _gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """All tensors whole, one after the other, in the memory of the rank that keeps them."""
    found = {}
    for key, tensor in tensors.items():
        value = whole(tensor)
        if keep:
            found[key] = value.detach().cpu()
    return found
