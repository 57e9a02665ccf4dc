"""Which losses are spikes: compared with the median of the losses before them."""

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

from train.config.supervision import SpikesConfig

NORMAL = 1.4826
"""Of normally distributed numbers the standard deviation is so many median absolute deviations."""
_LEAST = 0.01
"""The deviation that is assumed at least, as a share of the median: a loss that does not change has none."""


class SpikeDetector:
    """Judges the losses of a run, one step after the other. Its state can be JSON."""

    def __init__(self, config: SpikesConfig) -> None:
        self.config = config
        self._losses: deque[float] = deque(maxlen=config.window)
        """The last finite losses that were no spikes."""
        self.length = 0
        """Consecutive spikes up to now."""

    def is_spike(self, loss: float) -> bool:
        """Whether the loss of a step is a spike, which is counted in `length`. A loss that is not finite is none, and
        changes nothing. A falling loss is none: only what is above the median can be."""
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
        """The loss above which the next one is a spike; None while there are too few to compare with."""
        if len(self._losses) < self.config.min_steps:
            return None
        median = statistics.median(self._losses)
        deviation = statistics.median(abs(loss - median) for loss in self._losses)
        return median + self.config.threshold * max(NORMAL * deviation, _LEAST * abs(median))

    @property
    def median(self) -> float | None:
        return statistics.median(self._losses) if self._losses else None

    def restart(self) -> None:
        """Forgets all losses: those to come have another level."""
        self._losses.clear()
        self.length = 0

    def return_to(self, state: Mapping[str, Any]) -> None:
        """Compares with the losses before an earlier state, whose weights the run has again, if these are enough; a
        spike that is going on does so."""
        if len(state["losses"]) >= self.config.min_steps:
            self._losses = deque(state["losses"], maxlen=self.config.window)

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self._losses), "length": self.length}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes the newest losses where the window has become shorter."""
        self._losses = deque(state["losses"], maxlen=self.config.window)
        self.length = state["length"]
