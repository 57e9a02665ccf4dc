"""Restores the random state of a checkpoint before the first batch."""

from collections.abc import Sequence
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import reproducibility


class RestoreRNG(Callback):
    """Restores the random state, so that dropout and router jitter after a resume match the uninterrupted run."""

    def __init__(self, states: Sequence[dict[str, Any]]) -> None:
        """states: one random state per rank, in the format of composer.utils.reproducibility; if empty, nothing is
        restored."""
        self._states = states

    def batch_start(self, state: State, logger: Logger) -> None:
        if self._states:
            reproducibility.load_rng_state(list(self._states))
            self._states = ()
