"""What a run watches in itself: spikes of the loss, and how long each part of it may take."""

from dataclasses import dataclass

from data.config.sections import Section
from data.config.values import Count, Positive


@dataclass(frozen=True, kw_only=True)
class SpikesConfig(Section):
    """When the loss of a step is a spike: it is further above the median of the steps before it than `threshold` times
    their median absolute deviation."""

    window: Count = 128
    """Steps before it, with a finite loss and no spike, that it is compared with."""
    min_steps: Count = 32
    """Steps with which the first comparison is made."""
    threshold: Positive = 10.0
    """In median absolute deviations, multiplied by 1.4826 so that they are standard deviations of normal noise, and at
    least 1% of the median."""
    max_steps: Count = 100
    """Consecutive spikes after which their loss is taken as the new level (on_spike: log), or the run ends; and
    consecutive steps that are not finite after which it ends (on_nonfinite: skip)."""
    max_rollbacks: Count = 3
    """Of on_spike: rollback. At the next one the run ends."""


@dataclass(frozen=True, kw_only=True)
class DeadlinesConfig(Section):
    """How long each part of a run may take before it counts as hung: then the stacks of all ranks are written and the
    run ends. `multiple` times the run's own median, but at least the seconds below; null sets no deadline."""

    multiple: Positive | None = 10.0
    """Of the median of the run so far, which leaves out the first steps; null takes the seconds alone."""
    setup: Positive | None = 3600.0
    """Seconds from when all ranks are there to the end of the first step: model, weights, compilation."""
    step: Positive | None = 180.0
    """Seconds, at least, for a step without its data."""
    data: Positive | None = 180.0
    """Seconds, at least, that a step waits for its batch."""
    evaluation: Positive | None = 180.0
    """Seconds, at least, for a batch of an evaluation."""
    save: Positive | None = 1800.0
    """Seconds, at least, for saving a checkpoint."""
    heartbeat: Positive | None = 120.0
    """Seconds without a sign of life from a rank, whatever it was doing."""
