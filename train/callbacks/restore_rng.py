"""Restores the random state on a resume in the middle of an epoch, which Composer only does at an epoch's start."""

from composer import Trainer
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import reproducibility


class RestoreRNG(Callback):
    """Composer keeps the loaded random state for the batches it skips; a dataset that resumes by itself skips none.

    Without this, dropout and router jitter after a resume are not those of the uninterrupted run.
    """

    trainer: Trainer | None = None

    def batch_start(self, state: State, logger: Logger) -> None:
        if self.trainer is not None and self.trainer._rng_state is not None:
            reproducibility.load_rng_state(self.trainer._rng_state)
            self.trainer._rng_state = None
