"""Puts the model and the optimizer of a checkpoint back while a run goes on."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from data.base.console import logger
from train.checkpoint.load import load
from train.checkpoint.storage.finite import NotFiniteError
from train.checkpoint.storage.manifest import CorruptCheckpointError
from train.supervision.exit_codes import ExitCode, RunStopped


def roll_back(checkpoints: Sequence[Path], model: nn.Module, optimizer: torch.optim.Optimizer) -> Path | None:
    """Loads the newest of the checkpoints (oldest first) that is right, which loading verifies, and returns it; None
    where there are none, and then nothing has changed. The settings of the optimizer's groups stay as they are.

    Every rank has to call it. Raises RunStopped, on every rank, when none of them can be loaded.
    """
    errors = []
    for path in reversed(checkpoints):
        try:
            load(path, model, optimizer)
        except (CorruptCheckpointError, NotFiniteError) as error:
            logger.warning(str(error))
            errors.append(str(error))
        else:
            return path
    if errors:
        text = "\n  ".join(["on_spike: rollback found no checkpoint that can be loaded", *errors])
        raise RunStopped(ExitCode.UNSTABLE, text)
    return None
