"""What a run watches in itself: spikes of the loss, experts, deadlines of its parts, and profiles of its steps."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from data.config.sections import Defect, Section
from data.config.values import Count, CountOrZero, Positive, PositiveDuration, PositiveShare, Range


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
class ExpertsConfig(Section):
    """What a run measures of its experts, and when it reports one (see docs/reliability.md#expert-health)."""

    interval: PositiveDuration | None = "100ba"
    """Time between measurements of each layer: load shares, router logits, gradient norms, unchanged choices. The first
    and the last step are measured too; null measures none."""
    probe_tokens: CountOrZero = 256
    """Tokens of the run's first rows, at most a microbatch of them, that each measurement routes again to compare their
    experts with those of the last one; 0 leaves that out."""
    dead_steps: Count = 100
    """Consecutive steps without a token of any rank after which an expert is reported as dead."""
    max_share: PositiveShare = 0.95
    """Share of its layer's tokens: an expert that has more of them in `max_share_steps` consecutive steps is reported.
    1 reports none. Not where a token has more than half of the experts (moe_top_k)."""
    max_share_steps: Count = 10
    """Consecutive steps for which an expert has more than `max_share` of the tokens until it is reported."""


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


def _ranks(profile: "ProfileConfig") -> Iterator[Defect]:
    if not profile.ranks:
        yield Defect("ranks", "is [], but at least 1 is needed: write [0]")


@dataclass(frozen=True, kw_only=True)
class ProfileConfig(Section):
    """Steps that torch.profiler records: a trace and a table by category, in the folder profile of the log folder."""

    RULES = (_ranks,)

    step: Count
    """The first one, counted from 1, as on the console. The first steps of a run are slower than those to come."""
    steps: Count = 3
    """How many. A step of a large model may take some hundred MB of the host's memory and of the trace."""
    ranks: list[Annotated[int, Range(ge=0)]] = field(default_factory=lambda: [0])
    """Those that are recorded."""

    def past_the_end(self, max_batches: int) -> Iterator[Defect]:
        """Of a run of so many batches."""
        last = self.step + self.steps - 1
        if last > max_batches:
            text = f"is {self.step}, and with profile.steps: {self.steps} the last profiled step is {last}"
            most = max_batches - self.steps + 1
            fix = f"write at most {most}, or profile=null" if most >= 1 else "write profile=null"
            yield Defect("profile.step", f"{text}, but the run has only {max_batches}: {fix}")
