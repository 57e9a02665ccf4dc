"""Restores the random state of a checkpoint before the first batch."""

from collections.abc import Sequence
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import reproducibility


class RestoreRNG(Callback):
    """Without this, dropout and router jitter after a resume are not those of the uninterrupted run."""

    def __init__(self, states: Sequence[dict[str, Any]]) -> None:
        """states: of each rank, as composer.utils.reproducibility takes them; empty: nothing is restored."""
        self._states = states

    def batch_start(self, state: State, logger: Logger) -> None:
        if self._states:
            reproducibility.load_rng_state(list(self._states))
            self._states = ()
