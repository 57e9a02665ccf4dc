"""Matches the patterns in the optimizer's config with parameter names. The names are computed from the config, without
torch."""

import fnmatch
from collections.abc import Sequence

from data.base.errors import ConfigError
from train.config.optimizer import OptimizerConfig
from train.config.schema import TrainConfig
from train.models.shapes import adapter_shapes, parameter_shapes


def check_patterns(config: TrainConfig) -> None:
    """Raise ConfigError if a pattern matches no parameter, or if no parameter is trained."""
    base, lora, optimizer = list(parameter_shapes(config.model)), config.lora, config.optimizer
    adapters = list(adapter_shapes(config.model, lora)) if lora is not None else []
    names = base + adapters
    matching(names, optimizer.no_weight_decay, "optimizer.no_weight_decay")
    for i, group in enumerate(optimizer.param_groups):
        matching(names, group.match, f"optimizer.param_groups[{i}].match")
    check_any_trained(set(adapters or base) - matching(names, optimizer.freeze, "optimizer.freeze"), optimizer)


def check_any_trained(trained: set[str], optimizer: OptimizerConfig) -> None:
    """Raise ConfigError if no parameter is trained."""
    if not trained:
        raise ConfigError(
            f"is {optimizer.freeze}, but these patterns freeze every parameter: remove a pattern, so that some "
            "parameters are trained",
            key="optimizer.freeze",
        )


def matching(names: Sequence[str], patterns: Sequence[str], key: str) -> set[str]:
    """The names that match any of the patterns. Raises ConfigError for a pattern that matches no name."""
    matched: set[str] = set()
    for pattern in patterns:
        hits = fnmatch.filter(names, pattern)
        if not hits:
            examples = ", ".join(
                sorted({name.replace(".0.", ".*.") for name in names if ".blocks." not in name or ".blocks.0." in name})
            )
            raise ConfigError(
                f"has {pattern!r}, but this pattern matches no parameter; the names of parameters are: {examples}",
                key=key,
            )
        matched.update(hits)
    return matched
