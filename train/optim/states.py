"""The state that optimizers keep for parameters, computed from the config, without torch."""

from fnmatch import fnmatch

from train.config.optimizer import OptimizerConfig
from train.config.schema import TrainConfig
from train.models.shapes import adapter_shapes, parameter_shapes


def trainable_shapes(config: TrainConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of the trainable parameters by name: the adapters if there are any, otherwise all parameters of the
    model. Checkpoints contain all trainable parameters, including those that optimizer.freeze excludes from
    training."""
    return parameter_shapes(config.model) if config.lora is None else adapter_shapes(config.model, config.lora)


def is_frozen(config: TrainConfig, name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in config.optimizer.freeze)


def trained_names(config: TrainConfig) -> set[str]:
    """The names of the trained parameters, which are the trainable parameters that optimizer.freeze does not freeze."""
    return {name for name in trainable_shapes(config) if not is_frozen(config, name)}


def n_moments(optimizer: OptimizerConfig) -> int:
    """The number of tensors of the parameter's shape that the optimizer keeps for each trained parameter."""
    return {"adamw": 2, "decoupled_adamw": 2, "decoupled_lionw": 1, "sgd": int(optimizer.momentum > 0)}[optimizer.name]


def n_counters(optimizer: OptimizerConfig) -> int:
    """The number of one-element tensors that the optimizer keeps for each trained parameter."""
    return int(optimizer.name in ("adamw", "decoupled_adamw"))
