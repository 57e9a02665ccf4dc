"""Saves checkpoints. What a file system refuses ends the run in one line, on every rank, and leaves no half of one."""

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import NoReturn

from composer import callbacks
from composer.core import State
from composer.loggers import Logger
from composer.utils import checkpoint, dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from data.base.errors import DataError, os_error, os_errors_named, plain_os_errors
from data.base.sizes import format_bytes
from train.composer_compat import join_ranks_after_failed_save


class CheckpointSaver(callbacks.CheckpointSaver):
    """Composer's, into a local folder. It has the name of Composer's, under which checkpoints hold its state.

    When a rank cannot write its part of a checkpoint, every rank raises DataError or ConfigError (see plain_os_errors),
    and what was written of it is removed. The checkpoints before it stay.
    """

    def __init__(self, folder: str, save_interval: str, *, overwrite: bool, num_checkpoints_to_keep: int) -> None:
        super().__init__(
            folder,
            remote_file_name=None,
            latest_remote_file_name=None,
            save_interval=save_interval,
            overwrite=overwrite,
            num_checkpoints_to_keep=num_checkpoints_to_keep,
        )

    def _save_checkpoint(self, state: State, logger: Logger) -> None:
        file = Path(checkpoint.get_save_filename(state, self.filename.format(state, keep_placeholders=True)))
        saved_before = self.symlink_count
        # Made here, because a rank that fails to would be missing in the collectives of the save.
        refused = _first(_make(file.parent))
        error = None
        if refused is None:
            error = self._write(state, logger)
            refused = _first(None if error is None else _refused(error) or _refusal(state, file.parent))
        if refused is not None:
            # Composer counts a symlink as soon as the checkpoint is complete: what failed then came after it.
            if self.symlink_count == saved_before and dist.get_local_rank() == 0:
                _remove(file.parent if state.fsdp_sharded_state_dict_enabled else file)
            dist.barrier()
            self._report(state, refused)
        if error is not None:
            raise error

    def _write(self, state: State, logger: Logger) -> BaseException | None:
        """The error of writing: of this rank, or of any where torch tells all of them. Other errors are raised."""
        saved_before = self.symlink_count
        try:
            super()._save_checkpoint(state, logger)
        except (CheckpointException, OSError, RuntimeError) as error:
            if not isinstance(error, CheckpointException) and os_error(error) is None:
                raise
            if self.symlink_count == saved_before:
                join_ranks_after_failed_save()
            return error
        return None

    def _report(self, state: State, refused: OSError) -> NoReturn:
        subject, n_bytes = f"save_folder {self.folder}", format_bytes(_n_bytes(state))
        free = format_bytes(shutil.disk_usage(self.folder).free, down=True)
        what = f"the checkpoint of batch {state.timestamp.batch.value}, which takes {n_bytes} ({free} are free)"
        again = "start again with autoresume=true, which resumes from the checkpoint before it"
        with (
            os_errors_named(f"{subject}, for {what},", "written", as_error=DataError),
            plain_os_errors(subject, "name another save_folder", needed_for=what, again=again),
        ):
            raise refused
        raise AssertionError


def _make(folder: Path) -> OSError | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return error
    return None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _first(error: OSError | None) -> OSError | None:
    """The error of the first rank that has one, on every rank."""
    return next((found for found in dist.all_gather_object(error) if found is not None), None)


def _refused(error: BaseException) -> OSError | None:
    if not isinstance(error, CheckpointException):
        return os_error(error)
    found = (os_error(failure) for failure, _ in error.failures.values())
    return next((cause for cause in found if cause is not None), None)


def _refusal(state: State, folder: Path) -> OSError | None:
    """What the file system says when it is asked for as much as this rank writes of a checkpoint.

    torch pickles the errors of the ranks, which leaves out their causes: of a full disk, a limit on the size of a file
    or a quota no more is known than the RuntimeError of torch's zip writer (`unexpected pos`).
    """
    n_bytes = _n_bytes(state, of_this_rank=True)
    # What torch adds to the tensors is less.
    n_bytes += n_bytes // 8 + 2**20
    try:
        if shutil.disk_usage(folder).free < n_bytes:
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if hasattr(os, "posix_fallocate"):  # macOS lacks it
            with tempfile.TemporaryFile(dir=folder) as file:
                os.posix_fallocate(file.fileno(), 0, n_bytes)
    except OSError as error:
        return error
    return None


def _n_bytes(state: State, *, of_this_rank: bool = False) -> int:
    """Of the tensors in a checkpoint, or of this rank's shards of them."""
    (optimizer,) = state.optimizers
    tensors = [*state.model.state_dict().values(), *(t for each in optimizer.state.values() for t in each.values())]
    if of_this_rank:
        tensors = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, Tensor))
