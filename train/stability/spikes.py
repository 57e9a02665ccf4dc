"""Detects spikes of the loss by comparing it with the median of earlier losses."""

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

from train.config.supervision import SpikesConfig

NORMAL = 1.4826
"""Ratio of the standard deviation to the median absolute deviation for normally distributed numbers."""
_LEAST = 0.01
"""Minimum deviation as a share of the median. Without it, the deviation of a constant loss would be 0."""


class SpikeDetector:
    """Classifies the losses of a run step by step. Its state consists of JSON values."""

    def __init__(self, config: SpikesConfig) -> None:
        self.config = config
        self._losses: deque[float] = deque(maxlen=config.window)
        """The most recent losses, excluding spikes and losses that were not finite."""
        self.length = 0
        """Number of consecutive spikes so far."""

    def is_spike(self, loss: float) -> bool:
        """Return whether the loss of a step is a spike, and update `length`. Only losses above the median can be
        spikes. A loss that is not finite is ignored."""
        if not math.isfinite(loss):
            return False
        limit = self.limit
        if limit is not None and loss > limit:
            self.length += 1
            return True
        self.length = 0
        self._losses.append(loss)
        return False

    @property
    def limit(self) -> float | None:
        """The next loss is a spike if it is above this value. None while there are too few losses to compare with."""
        if len(self._losses) < self.config.min_steps:
            return None
        median = statistics.median(self._losses)
        deviation = statistics.median(abs(loss - median) for loss in self._losses)
        return median + self.config.threshold * max(NORMAL * deviation, _LEAST * abs(median))

    @property
    def median(self) -> float | None:
        return statistics.median(self._losses) if self._losses else None

    def restart(self) -> None:
        """Discard all losses, because the level of the following losses is different."""
        self._losses.clear()
        self.length = 0

    def return_to(self, state: Mapping[str, Any]) -> None:
        """After a rollback, use the losses of the restored state for comparison if there are enough of them. The
        current spike, if any, continues."""
        if len(state["losses"]) >= self.config.min_steps:
            self._losses = deque(state["losses"], maxlen=self.config.window)

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self._losses), "length": self.length}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state. If the window is now shorter, only the newest losses are kept."""
        self._losses = deque(state["losses"], maxlen=self.config.window)
        self.length = state["length"]
