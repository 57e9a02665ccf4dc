"""Restores the random state on a resume in the middle of an epoch, which Composer only does at an epoch's start."""

from composer import Trainer
from composer.core import Callback, State
from composer.loggers import Logger

from train.composer_compat import restore_random_state


class RestoreRNG(Callback):
    """Without this, dropout and router jitter after a resume are not those of the uninterrupted run."""

    trainer: Trainer | None = None

    def batch_start(self, state: State, logger: Logger) -> None:
        if self.trainer is not None:
            restore_random_state(self.trainer)
