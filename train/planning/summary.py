"""Lines for the console about the resources of a run, computed from its config. Does not import torch."""

import math
from pathlib import Path

from data.base.durations import Clock, parse_duration
from data.base.sizes import format_bytes
from train.checkpoint.saving.space import count_saves, describe_space, snapshot_bytes
from train.config.schema import TrainConfig
from train.models.config import LoraConfig, ModelConfig
from train.models.precision import FORMATS, PRECISIONS
from train.models.shapes import adapter_shapes, count_adapters, count_parameters, parameter_shapes


def parameters_line(model: ModelConfig, lora: LoraConfig | None = None) -> str:
    """`parameters: 131,596,523,520 (36.47 B active)`. With lora, `, frozen; adapters: ...` is appended."""
    message = f"parameters: {_counted(*count_parameters(model))}"
    return message if lora is None else f"{message}, frozen; adapters: {_counted(*count_adapters(model, lora))}"


def _counted(total: int, active: int) -> str:
    short = f"{active / 1e9:.2f} B" if active >= 1e9 else f"{active / 1e6:.2f} M"
    return f"{total:,} ({short} active)"


def snapshot_line(config: TrainConfig, world_size: int, ranks: int) -> str:
    """The memory that a node needs for the copy of the training state from which a checkpoint is written while training
    continues. ranks: number of ranks on the node."""
    size = format_bytes(snapshot_bytes(config, world_size, ranks))
    return f"memory for the copy of a checkpoint on a node with {ranks} rank(s), during a save (save_async): {size}"


def checkpoints_line(config: TrainConfig, folder: Path, world_size: int, clock: Clock | None = None) -> str:
    """The disk space that the checkpoints in the folder need. clock: the clock of the run's data. If clock is None and
    a duration is in epochs, the number of checkpoints is unknown."""
    clock = clock or config_clock(config)
    n_saves = None if clock is None else count_saves(config, clock)
    return describe_space(config, folder, n_saves, world_size=world_size)


def config_clock(config: TrainConfig) -> Clock | None:
    """The clock of the run, computed from its config. None if a duration is in epochs."""
    if "ep" in {parse_duration(text)[1] for text in (config.max_duration, config.save_interval)}:
        return None
    size = config.global_train_batch_size
    clock = Clock(tokens_per_batch=size * config.max_seq_len, rows_per_batch=size, rows_per_epoch=0)
    return clock.until(config.max_duration)


def export_line(config: TrainConfig) -> str:
    """The size of the exported weights, in both precisions."""
    shapes = parameter_shapes(config.model)
    if config.lora is not None:
        shapes = adapter_shapes(config.model, config.lora)
    numbers = sum(math.prod(shape) for shape in shapes.values())
    sizes = ", ".join(f"{format_bytes(FORMATS[each].n_bytes * numbers)} in {each}" for each in PRECISIONS)
    what = "a Hugging Face folder" if config.lora is None else "a PEFT adapter"
    return f"export as {what}: {sizes}"
