"""Puts the model and the optimizer of a checkpoint back while a run goes on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from data.base.console import logger
from train.checkpoint.load import load, open_checkpoint
from train.checkpoint.state import state_if_any
from train.checkpoint.storage.finite import NotFiniteError
from train.checkpoint.storage.manifest import CorruptCheckpointError
from train.supervision.exit_codes import ExitCode, RunStopped


class RolledBack(NamedTuple):
    """Where a run has gone back to."""

    checkpoint: Path
    callbacks: Mapping[str, Any]
    """Class of a callback -> its state in the checkpoint."""


def roll_back(checkpoints: Sequence[Path], model: nn.Module, optimizer: torch.optim.Optimizer) -> RolledBack | None:
    """Loads the newest of the checkpoints (oldest first) that is right, which loading verifies; None where there are
    none, and then nothing has changed. The settings of the optimizer's groups stay as they are.

    Every rank has to call it. Raises RunStopped, on every rank, when none of them can be loaded.
    """
    errors = []
    for path in reversed(checkpoints):
        try:
            load(path, model, optimizer)
            state = state_if_any(open_checkpoint(path))
        except (CorruptCheckpointError, NotFiniteError) as error:
            logger.warning(str(error))
            errors.append(str(error))
        else:
            return RolledBack(path, state.callbacks if state is not None else {})
    if errors:
        text = "\n  ".join(["on_spike: rollback found no checkpoint that can be loaded", *errors])
        raise RunStopped(ExitCode.UNSTABLE, text)
    return None
