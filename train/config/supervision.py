"""What a run monitors: loss spikes, experts, deadlines, and profiles of individual steps."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from data.config.sections import Defect, Section
from data.config.values import Count, CountOrZero, Positive, PositiveDuration, PositiveShare, Range


@dataclass(frozen=True, kw_only=True)
class SpikesConfig(Section):
    """Defines when the loss of a step counts as a spike: if it exceeds the median loss of the preceding steps by more
    than `threshold` times the median absolute deviation of these losses."""

    window: Count = 128
    """Number of preceding steps that a step is compared with. Only steps with a finite loss that is not a spike are
    used."""
    min_steps: Count = 32
    """Number of preceding steps that are required for the first comparison."""
    threshold: Positive = 10.0
    """Threshold, as a multiple of the median absolute deviation. The deviation is multiplied by 1.4826 to estimate the
    standard deviation, and is at least 1% of the median."""
    max_steps: Count = 100
    """After this many consecutive spikes, losses are compared with the new level of the loss (on_spike: log), or the
    run ends (on_spike: skip or rollback). The run also ends after this many consecutive non-finite steps (on_nonfinite:
    skip)."""
    max_rollbacks: Count = 3
    """Maximum number of rollbacks (on_spike: rollback). The next spike after that ends the run."""


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig(Section):
    """What a run measures about its experts, and when it reports an expert (see docs/reliability.md#expert-health)."""

    interval: PositiveDuration | None = "100ba"
    """Interval between measurements. For each layer, a run measures the load shares of the experts, the router logits,
    gradient norms, and how many expert selections are the same as in the previous measurement. The first and the last
    step are measured too; null disables these measurements."""
    probe_tokens: CountOrZero = 256
    """Number of tokens of the run's first rows, at most a microbatch, that are routed again in each measurement to find
    how many expert selections have not changed; 0 disables this."""
    dead_steps: Count = 100
    """Number of consecutive steps without a token from any rank after which an expert is reported as dead."""
    max_share: PositiveShare = 0.95
    """An expert is reported if its share of the layer's tokens exceeds this value in `max_share_steps` consecutive
    steps. 1 disables this report. It is also disabled if each token selects more than half of the experts
    (moe_top_k)."""
    max_share_steps: Count = 10
    """Number of consecutive steps above `max_share` after which an expert is reported."""


@dataclass(frozen=True, kw_only=True)
class DeadlinesConfig(Section):
    """How long each part of a run may take before it counts as hung. The stacks of all ranks are then written and the
    run ends. Each limit is `multiple` times the median duration measured in this run, but no less than the minimum set
    for that part; null disables the limit."""

    multiple: Positive | None = 10.0
    """Each limit is this multiple of the median duration so far, not counting the first steps of the run; null uses
    only the minimum limits below."""
    setup: Positive | None = 3600.0
    """Maximum time in seconds between the moment when all ranks have connected and the end of the first step. This
    includes building the model, loading weights and compilation."""
    step: Positive | None = 180.0
    """Minimum time limit, in seconds, for a step, not counting the time to load its data."""
    data: Positive | None = 180.0
    """Minimum time limit, in seconds, for waiting for a batch."""
    evaluation: Positive | None = 180.0
    """Minimum time limit, in seconds, for a batch of an evaluation."""
    save: Positive | None = 1800.0
    """Minimum time limit, in seconds, for saving a checkpoint."""
    heartbeat: Positive | None = 120.0
    """Maximum time in seconds without a heartbeat from a rank, in any part of the run."""


def _ranks(profile: "ProfileConfig") -> Iterator[Defect]:
    if not profile.ranks:
        yield Defect("ranks", "is [], but at least 1 rank is required: use [0]")


@dataclass(frozen=True, kw_only=True)
class ProfileConfig(Section):
    """The steps that torch.profiler records. A trace and a table by category are written to the subfolder profile of
    the log folder."""

    RULES = (_ranks,)

    step: Count
    """The first profiled step, counted from 1 as on the console. The first steps of a run are slower than later
    ones."""
    steps: Count = 3
    """Number of profiled steps. For a large model, each profiled step may need several hundred MB of CPU memory, and
    the same amount of space in the trace file."""
    ranks: list[Annotated[int, Range(ge=0)]] = field(default_factory=lambda: [0])
    """The ranks that are profiled."""

    def past_the_end(self, max_batches: int) -> Iterator[Defect]:
        """Yield a defect if the profiled steps do not fit into a run of max_batches batches."""
        last = self.step + self.steps - 1
        if last > max_batches:
            text = f"is {self.step}, and with profile.steps: {self.steps} the last profiled step is {last}"
            most = max_batches - self.steps + 1
            fix = f"use at most {most}, or profile=null" if most >= 1 else "use profile=null"
            yield Defect("profile.step", f"{text}, but the run has only {max_batches} steps: {fix}")
