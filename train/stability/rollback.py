"""Restores the model and the optimizer from a checkpoint while a run continues."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from composer.utils import dist
from torch import nn

from data.base.console import logger
from train.checkpoint.load import load, open_checkpoint
from train.checkpoint.state import state_if_any
from train.checkpoint.storage.finite import NotFiniteError
from train.checkpoint.storage.manifest import CorruptCheckpointError
from train.distributed.clipping import drop_gradients
from train.distributed.first_rank import on_first_rank
from train.supervision.exit_codes import ExitCode, RunStopped


class RolledBack(NamedTuple):
    """The state that a run has rolled back to."""

    checkpoint: Path
    callbacks: Mapping[str, Any]
    """The state of each callback in the checkpoint, by class name."""


def roll_back(checkpoints: Sequence[Path], model: nn.Module, optimizer: torch.optim.Optimizer) -> RolledBack | None:
    """Load the newest checkpoint that can be loaded and verified, and drop the gradients. checkpoints: oldest first.
    Returns None and changes nothing if there are no checkpoints. The settings of the optimizer's groups do not change.

    Every rank must call this. Raises RunStopped on every rank if no checkpoint can be loaded.
    """
    if checkpoints:
        # The gradients are dropped first, because loading needs memory.
        drop_gradients(param for group in optimizer.param_groups for param in group["params"])
    errors = []
    for path in reversed(checkpoints):
        try:
            callbacks = _callbacks(path)
            load(path, model, optimizer)
        except (CorruptCheckpointError, NotFiniteError) as error:
            logger.warning(str(error))
            errors.append(str(error))
        else:
            return RolledBack(path, callbacks)
    if errors:
        text = "\n  ".join(["on_spike: rollback found no checkpoint that can be loaded", *errors])
        raise RunStopped(ExitCode.UNSTABLE, text)
    return None


def _callbacks(checkpoint: Path) -> Mapping[str, Any]:
    """Return the state of the callbacks in the checkpoint. Rank 0 reads the state. All ranks return the same state, or
    raise the same error."""
    found: list[Mapping[str, Any]] = [{}]

    def read() -> None:
        if (state := state_if_any(open_checkpoint(checkpoint))) is not None:
            found[0] = state.callbacks

    on_first_rank(read)
    dist.broadcast_object_list(found, src=0)
    return found[0]
