"""Save checkpoints one at a time, either in a background thread while training continues or synchronously."""

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
"""Maximum fraction of a node's free memory that copies of tensors may use."""
_ROUND_SECONDS = 0.5
"""Seconds between two exchanges among ranks while they wait for a save."""
_WAITS_SECONDS = 1.0
"""Seconds that a save waits for the previous save before a message is logged."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """The outcome of a save. All fields except `seconds` are the same on every rank."""

    checkpoint: Path
    batch: int
    needed: int
    """Size of the checkpoint's tensors in bytes."""
    refused: OSError | None
    """The file system's error if the checkpoint could not be written, else None."""
    seconds: float
    """Duration of the save on this rank."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """The content of a checkpoint."""

    tensors: Mapping[str, Tensor]
    state: bytes
    """Rank 0's serialized RunState."""
    config: str
    about: Manifest
    gather: bool
    """Whether rank 0 gathers the tensors and writes them unsharded."""


@dataclass(kw_only=True)
class _Pending:
    checkpoint: Path
    batch: int
    needed: int
    saved: Future[Saved] = field(default_factory=Future)
    began: float = field(default_factory=time.monotonic)
    ended: float = math.nan


class BackgroundSaver:
    """Saves the checkpoints of one run. Each method must be called from the main thread of every rank.

    The background threads communicate over `ranks` and the main threads over `main_ranks`, so that background and main
    threads never wait for each other. If a background thread fails, the same call of `poll` or `wait` raises its error
    on all ranks.
    """

    def __init__(self, *, ranks: Ranks, main_ranks: Ranks, confirm: Callable[[], None], pruning: Pruning) -> None:
        """confirm: see save_checkpoint."""
        self.on_committed: list[Callable[[Path], None]] = []
        """Functions that are called on every rank after a checkpoint is committed, in the thread that saves it."""
        self._ranks, self._main_ranks, self._confirm, self._pruning = ranks, main_ranks, confirm, pruning
        self._snapshot, self._pace = Snapshot(), Pace()
        self._fits: bool | None = None
        """Whether there is enough memory for a snapshot; None until it is checked."""
        self._pending: _Pending | None = None
        self._logged_wait = False

    @property
    def is_saving(self) -> bool:
        """Whether a save was started, and its outcome has not been returned by `poll` or `wait` yet."""
        return self._pending is not None

    def save(self, checkpoint: Path, content: Content, *, background: bool) -> Written | None:
        """Start saving a checkpoint. Its outcome is returned by `poll` or `wait`. If the previous checkpoint is still
        being saved, wait for it and return its outcome.

        background: save in a thread if there is enough memory for a copy of the tensors. The tensors may then change as
        soon as this method returns.
        """
        before = self._wait_for_previous(content.about.batch)
        writes = self._writes(content)
        if background and self._fits is None:
            self._fits = self._check_memory(snapshot_size(content.tensors, gather=content.gather) if writes else 0)
        background = background and bool(self._fits)
        # With `gather`, a synchronous save also uses the snapshot's memory, to avoid a second copy of the tensors.
        if background or (content.gather and self._fits):
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
        """Return the outcome of the current save if the save has ended on every rank. Does not wait. Called in each
        step.

        Raises the error of the save on every rank. Errors of the file system are not raised, but are part of the
        outcome.
        """
        if self._pending is None:
            return None
        saved = self._pending.saved
        failed = saved.done() and saved.exception() is not None
        unfinished, failed = self._main_ranks.any(not saved.done(), failed)
        # If the thread of one rank has failed, do not wait for the other threads, because they may wait for it forever.
        return self._conclude() if failed or not unfinished else None

    def wait(self) -> Written | None:
        """Wait until the current save has ended, and return its outcome. Raises the same errors as `poll`."""
        written = None
        self._pace.hurry()
        while self._pending is not None:
            with suppress(TimeoutError):
                self._pending.saved.exception(_ROUND_SECONDS)
            written = self.poll()
        return written

    def abandon(self, seconds: float) -> None:
        """Finish the current save after an error that ends the run, perhaps only on this rank. The threads of all ranks
        continue to save. Waits at most `seconds`, because other ranks may have ended. Raises no errors."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        self._pace.hurry()
        if not pending.saved.done():
            logger.info(f"the run failed, and will end after the checkpoint of batch {pending.batch} is written")
        try:
            error = pending.saved.exception(seconds)
            error = error or pending.saved.result().refused
        except TimeoutError:
            error = TimeoutError(f"timed out after {seconds:g} s")
        if error is not None and not isinstance(error, SystemExit):
            logger.warning(f"the checkpoint of batch {pending.batch} was not saved: {error}")

    def _run(self, pending: _Pending, tensors: Mapping[str, Tensor], content: Content, device: int | None) -> None:
        try:
            if device is not None:
                torch.cuda.set_device(device)  # a new thread starts with device 0
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
            with _errors_as_warnings(checkpoint):
                ranks.on_first(lambda: self._pruning.pin(checkpoint, pending.batch))
            for committed in self.on_committed:
                committed(checkpoint)
            with _errors_as_warnings(checkpoint):
                self._pruning.after(pending.batch, saved.files, checkpoint, ranks)
        return saved

    def _conclude(self) -> Written:
        assert self._pending is not None
        pending, self._pending = self._pending, None
        error = pending.saved.exception() if pending.saved.done() else None
        # An error such as SystemExit from a signal ends only this process, so it is not sent to other ranks.
        if error is not None and not isinstance(error, Exception):
            raise error
        found = self._main_ranks.gather(None if error is None else for_others(error))
        if (first := next((each for each in found if each is not None), None)) is not None:
            raise first
        return Written(
            checkpoint=pending.checkpoint,
            batch=pending.batch,
            needed=pending.needed,
            refused=pending.saved.result().refused,
            seconds=pending.ended - pending.began,
        )

    def _wait_for_previous(self, batch: int) -> Written | None:
        if (pending := self._pending) is None:
            return None
        self._pace.hurry()
        try:
            pending.saved.exception(_WAITS_SECONDS)
        except TimeoutError:
            if not self._logged_wait:
                logger.info(
                    f"the checkpoint of batch {pending.batch} is still being written: the run waits before it saves "
                    f"the checkpoint of batch {batch} (logged once; a longer save_interval avoids the wait)"
                )
            self._logged_wait = True
        return self.wait()

    def _writes(self, content: Content) -> bool:
        """Whether this rank writes tensors."""
        return self._ranks.is_first if content.gather else self._ranks.writers(mesh_of(content.tensors.values()))[1]

    def _check_memory(self, mine: int) -> bool:
        """Whether the copies of all ranks fit into the free memory of their nodes. mine: number of bytes that this rank
        copies."""
        needed: dict[int, int] = {}
        free: dict[int, float] = {}
        # A node is identified by its first rank, because torchrun does not set NODE_RANK.
        this_node = dist.get_global_rank() - dist.get_local_rank()
        for node, size, there in self._main_ranks.gather((this_node, mine, free_cpu_memory())):
            needed[node] = needed.get(node, 0) + size
            free[node] = min(there, free.get(node, there))
        node = max(needed, key=lambda node: needed[node] - _USABLE * free[node])
        if needed[node] <= _USABLE * free[node]:
            return True
        logger.warning(
            f"training pauses while a checkpoint is saved: a copy needs {format_bytes(needed[node])} of CPU memory on "
            f"the node of rank {node}, which has {format_bytes(free[node], down=True)} free, but the copy "
            f"may use at most {_USABLE:.0%} of the free memory"
        )
        return False


@contextmanager
def _errors_as_warnings(checkpoint: Path) -> Iterator[None]:
    """Log file system errors after the commit as warnings, because the checkpoint itself is already saved."""
    try:
        yield
    except OSError as error:
        logger.warning(f"{checkpoint} is saved, but superseded checkpoints may not have been deleted: {error}")


def _gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Gather all tensors, one after the other. Ranks with `keep` return them, in CPU memory; other ranks return
    nothing."""
    found = {}
    for key, tensor in tensors.items():
        value = whole(tensor)
        if keep:
            found[key] = value.detach().cpu()
    return found
