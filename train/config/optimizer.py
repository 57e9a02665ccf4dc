"""The optimizer, learning-rate schedule and gradient clipping of a config."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from data.base.durations import in_unit_of, parse_duration
from data.config.sections import Defect, Section
from data.config.values import DurationText, NotNegative, Positive, Share


@dataclass(frozen=True, kw_only=True)
class ParamGroupConfig(Section):
    """Parameters with a separate learning rate or weight decay."""

    match: list[str]
    """Shell-style patterns of parameter names, such as `*.experts.mlp.*`."""
    lr: Positive | None = None
    """The peak learning rate of these parameters. `null` uses `optimizer.lr`. To exclude parameters from training, use
    `optimizer.freeze`."""
    weight_decay: NotNegative | None = None
    """The weight decay of these parameters. `null` uses `optimizer.weight_decay`."""


def _betas(optimizer: "OptimizerConfig") -> Iterator[Defect]:
    if len(optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in optimizer.betas):
        yield Defect("betas", f"is {optimizer.betas}, but two numbers in [0, 1) are required")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Section):
    """How the weights are updated."""

    RULES = (_betas,)

    name: Literal["adamw", "decoupled_adamw", "decoupled_lionw", "sgd"]
    """The optimizer. `adamw` and `sgd` are torch's optimizers. `decoupled_adamw` and `decoupled_lionw` are implemented
    as in Composer, where `weight_decay` is not multiplied by the peak learning rate."""
    lr: Positive
    """The peak learning rate."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """Decay rates of the moving averages (Adam and Lion)."""
    eps: NotNegative = 1e-8
    """A small number that Adam adds to its denominator."""
    momentum: NotNegative = 0.0
    """Momentum of `sgd`."""
    weight_decay: NotNegative = 0.0
    """The weight decay coefficient."""
    no_weight_decay: list[str] = field(
        default_factory=lambda: ["*.norm_?.weight", "*.wte.weight", "*.router.layer.weight"]
    )
    """Patterns of the names of parameters without weight decay. With `[]`, weight decay applies to all parameters."""
    param_groups: list[ParamGroupConfig] = field(default_factory=list)
    """Learning rates and weight decays for parameters whose names match a pattern. If several patterns match, the first
    one is used."""
    freeze: list[str] = field(default_factory=list)
    """Patterns of the names of parameters that are not trained."""


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig(Section):
    """How the learning rate changes during the run."""

    name: Literal[
        "cosine_with_warmup",
        "linear_decay_with_warmup",
        "constant_with_warmup",
        "inv_sqrt_with_warmup",
        "wsd_with_warmup",
    ]
    """The schedule: how the learning rate changes after the warmup."""
    t_warmup: DurationText = "0ba"
    """Length of the linear warmup from 0."""
    alpha_f: Share = 0.0
    """Final learning rate, as a fraction of the peak learning rate. Used by the cosine, linear and WSD schedules."""
    t_decay: DurationText = "0.1dur"
    """Only for `wsd_with_warmup`: the length of the linear decay at the end of the run."""


@dataclass(frozen=True, kw_only=True)
class GradientClippingConfig(Section):
    """Clips gradients before each optimizer step."""

    clipping_type: Literal["norm", "value"]
    """`norm` scales all gradients by the same factor; `value` clamps each element of the gradients."""
    clipping_threshold: Positive
    """The maximum norm of all gradients, or the maximum absolute value of an element."""


@dataclass(frozen=True, kw_only=True)
class AlgorithmsConfig(Section):
    """Composer's algorithms."""

    gradient_clipping: GradientClippingConfig | None = None


def too_long(scheduler: SchedulerConfig, max_duration: str) -> Iterator[Defect]:
    """Yield a defect for each part of the schedule that is longer than the run, if the units can be compared. The
    messages suggest overrides for a short test."""
    total = parse_duration(max_duration)[0]
    warmup = in_unit_of(max_duration, scheduler.t_warmup) or 0.0
    if warmup > total:
        yield Defect(
            "t_warmup",
            f"is {scheduler.t_warmup}, but max_duration is only {max_duration}: use at most {max_duration}, or, for a "
            f"short test, set scheduler.t_warmup={'1ba' if scheduler.name == 'inv_sqrt_with_warmup' else '0ba'}",
        )
        warmup = 0.0
    if scheduler.name == "wsd_with_warmup" and warmup + (in_unit_of(max_duration, scheduler.t_decay) or 0.0) > total:
        yield Defect(
            "t_decay",
            f"is {scheduler.t_decay}, but together with scheduler.t_warmup ({scheduler.t_warmup}) it exceeds "
            f"max_duration ({max_duration}): use a shorter decay, or, for a short test, set "
            "scheduler.t_warmup=0ba scheduler.t_decay=0.1dur",
        )
