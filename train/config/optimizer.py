"""How weights are trained: optimizer, learning-rate schedule and gradient clipping, as a YAML has them."""

from dataclasses import dataclass, field
from typing import Literal

from data.base.durations import check_duration


@dataclass(frozen=True, kw_only=True)
class ParamGroupConfig:
    match: list[str]
    """Shell patterns over parameter names, such as `*.experts.mlp.*`."""
    lr: float | None = None
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        if self.lr is not None and self.lr <= 0:
            raise ValueError(
                f"lr is {self.lr}, but it must be positive (optimizer.freeze trains parameters not at all)"
            )
        if self.weight_decay is not None and self.weight_decay < 0:
            raise ValueError(f"weight_decay is {self.weight_decay}, but it cannot be negative")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    name: Literal["adamw", "decoupled_adamw", "decoupled_lionw", "sgd"]
    """adamw and sgd are torch's; decoupled_* follow Composer, which does not multiply weight_decay by the peak lr."""
    lr: float
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-8
    momentum: float = 0.0
    """sgd's."""
    weight_decay: float = 0.0
    no_weight_decay: list[str] = field(
        default_factory=lambda: ["*.norm_?.weight", "*.wte.weight", "*.router.layer.weight"]
    )
    """Patterns of parameters that are not decayed; [] decays all."""
    param_groups: list[ParamGroupConfig] = field(default_factory=list)
    """Own values for the parameters that match; the first match wins."""
    freeze: list[str] = field(default_factory=list)
    """Patterns of parameters that are not trained."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr is {self.lr}, but it must be positive")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas is {self.betas}, but two numbers in [0, 1) are needed")
        for name in ("weight_decay", "eps", "momentum"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but it cannot be negative")


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    name: Literal[
        "cosine_with_warmup",
        "linear_decay_with_warmup",
        "constant_with_warmup",
        "inv_sqrt_with_warmup",
        "wsd_with_warmup",
    ]
    t_warmup: str = "0ba"
    """Length of the linear rise from 0."""
    alpha_f: float = 0.0
    """Share of the learning rate at the end (cosine, linear and wsd)."""
    t_decay: str = "0.1dur"
    """wsd: length of the linear fall at the end."""

    def __post_init__(self) -> None:
        for name in ("t_warmup", "t_decay"):
            check_duration(name, getattr(self, name))
        if not 0 <= self.alpha_f <= 1:
            raise ValueError(f"alpha_f is {self.alpha_f}, but it is a share of the learning rate, in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class GradientClippingConfig:
    clipping_type: Literal["norm", "value"]
    clipping_threshold: float

    def __post_init__(self) -> None:
        if self.clipping_threshold <= 0:
            raise ValueError(f"clipping_threshold is {self.clipping_threshold}, but it must be positive")


@dataclass(frozen=True, kw_only=True)
class AlgorithmsConfig:
    gradient_clipping: GradientClippingConfig | None = None
