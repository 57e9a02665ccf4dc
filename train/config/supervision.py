"""What a run monitors: loss spikes, experts, deadlines, and profiles of individual steps."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from data.config.sections import Defect, Section
from data.config.values import Count, CountOrZero, Positive, PositiveDuration, PositiveShare, Range


@dataclass(frozen=True, kw_only=True)
class SpikesConfig(Section):
    """Defines when the loss of a step counts as a spike. The loss is a spike if it exceeds the median loss of the
    preceding steps by more than `threshold` times their median absolute deviation."""

    window: Count = 128
    """Number of preceding steps that a step is compared with. Steps with a spike or a loss that is not finite are not
    counted."""
    min_steps: Count = 32
    """Minimum number of preceding steps. Until the run has completed this many steps, no step counts as a spike."""
    threshold: Positive = 10.0
    """The limit for a spike, as a multiple of the median absolute deviation. The deviation is multiplied by 1.4826 to
    estimate the standard deviation, and is at least 1% of the median."""
    max_steps: Count = 100
    """Maximum number of consecutive spikes. With `on_spike: log`, the run then accepts the higher loss as the new
    normal level; with `skip` or `rollback`, it ends. With `on_nonfinite: skip`, the run also ends after this many
    consecutive steps with NaN or infinite values."""
    max_rollbacks: Count = 3
    """Maximum number of rollbacks with `on_spike: rollback`. After this many rollbacks, the run ends at the next
    spike."""


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig(Section):
    """What a run measures about its experts, and when an expert is reported as dead or
    overloaded (see docs/reliability.md#expert-health)."""

    interval: PositiveDuration | None = "100ba"
    """Interval between measurements of the experts in each layer: load shares, router logits, gradient norms, and the
    share of tokens that still select the same experts. The first and the last step are also measured. `null` disables
    these measurements."""
    probe_tokens: CountOrZero = 256
    """Number of tokens, from the first microbatch of the run, that are routed again in each measurement. The
    measurement counts how many of these tokens still select the same experts. `0` disables this measurement."""
    dead_steps: Count = 100
    """An expert is reported as dead if it receives no token from any rank in this many consecutive steps."""
    max_share: PositiveShare = 0.95
    """An expert is reported if it receives more than this share of the layer's tokens in `max_share_steps` consecutive
    steps. `1` disables this check. The check is also disabled if `moe_top_k` is more than half of the number of
    experts."""
    max_share_steps: Count = 10
    """Number of consecutive steps above `max_share` after which an expert is reported."""


@dataclass(frozen=True, kw_only=True)
class DeadlinesConfig(Section):
    """Time limits for the parts of a run. If a part takes longer than its limit, the run counts as hung: it writes the
    stacks of all ranks to a file and ends. Each limit is `multiple` times the median duration measured in this run, but
    no less than the minimum set for this part. `null` disables the limit of a part."""

    multiple: Positive | None = 10.0
    """A part may take this many times as long as its median duration. `null` uses only the minimum limits below."""
    setup: Positive | None = 3600.0
    """Time limit, in seconds, for setting up the run, from the time when all ranks have connected until the end of the
    first step. This includes building the model, loading weights and compilation."""
    step: Positive | None = 180.0
    """Minimum time limit, in seconds, for a step, not counting the time to load its data."""
    data: Positive | None = 180.0
    """Minimum time limit, in seconds, for waiting for a batch."""
    evaluation: Positive | None = 180.0
    """Minimum time limit, in seconds, for a batch of an evaluation."""
    save: Positive | None = 1800.0
    """Minimum time limit, in seconds, for saving a checkpoint."""
    heartbeat: Positive | None = 120.0
    """Maximum time, in seconds, between two heartbeats of a rank. This limit applies in all parts of the run."""


def _ranks(profile: "ProfileConfig") -> Iterator[Defect]:
    if not profile.ranks:
        yield Defect("ranks", "is [], but at least 1 rank is required: use [0]")


@dataclass(frozen=True, kw_only=True)
class ProfileConfig(Section):
    """Steps that are recorded with `torch.profiler`. A trace, and a table of the time by category, are written to the
    subfolder `profile` of the log folder."""

    RULES = (_ranks,)

    step: Count
    """The number of the first profiled step, as shown on the console. The first steps of a run are slower than later
    steps."""
    steps: Count = 3
    """Number of profiled steps. For a large model, each profiled step may need several hundred MB of CPU memory, and of
    disk space for the trace."""
    ranks: list[Annotated[int, Range(ge=0)]] = field(default_factory=lambda: [0])
    """The ranks that are profiled."""

    def past_the_end(self, max_batches: int) -> Iterator[Defect]:
        """Yield a defect if the profiled steps do not fit into a run of max_batches batches."""
        last = self.step + self.steps - 1
        if last > max_batches:
            text = f"is {self.step}, and with profile.steps: {self.steps} the last profiled step is {last}"
            most = max_batches - self.steps + 1
            fix = f"use at most {most}, or set profile=null" if most >= 1 else "set profile=null"
            yield Defect("profile.step", f"{text}, but the run has only {max_batches} steps: {fix}")
