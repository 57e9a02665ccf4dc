"""What optimizers keep of parameters. It follows from the config alone, without torch."""

from fnmatch import fnmatch

from train.config.optimizer import OptimizerConfig
from train.config.schema import TrainConfig
from train.models.shapes import adapter_shapes, parameter_shapes


def trainable_shapes(config: TrainConfig) -> dict[str, tuple[int, ...]]:
    """Parameters by name, and their shapes: the adapters where there are any, else all of the model. These are in a
    checkpoint, and those that are not frozen are trained."""
    return parameter_shapes(config.model) if config.lora is None else adapter_shapes(config.model, config.lora)


def is_frozen(config: TrainConfig, name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in config.optimizer.freeze)


def trained_names(config: TrainConfig) -> set[str]:
    """Parameters that are trained: trainable, and not frozen by optimizer.freeze."""
    return {name for name in trainable_shapes(config) if not is_frozen(config, name)}


def n_moments(optimizer: OptimizerConfig) -> int:
    """Tensors of a trained parameter's shape that are kept for it."""
    return {"adamw": 2, "decoupled_adamw": 2, "decoupled_lionw": 1, "sgd": int(optimizer.momentum > 0)}[optimizer.name]


def n_counters(optimizer: OptimizerConfig) -> int:
    """Tensors of one number that are kept for a trained parameter."""
    return int(optimizer.name in ("adamw", "decoupled_adamw"))
