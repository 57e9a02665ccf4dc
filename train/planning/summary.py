"""Lines for the console: what a run needs, from its config alone. Imports no torch."""

from pathlib import Path

from data.base.durations import Clock, parse_duration
from data.base.sizes import format_bytes
from train.checkpoint.saving.space import count_saves, describe_space, snapshot_bytes
from train.config.schema import TrainConfig
from train.models.config import LoraConfig, ModelConfig
from train.models.shapes import count_adapters, count_parameters
from train.planning.memory import memory_per_rank

_NODE_RANKS = 8
"""GPUs come in nodes of 8."""


def parameters_line(model: ModelConfig, lora: LoraConfig | None = None) -> str:
    """`parameters: 131,596,523,520 (36.47 B active)`, and with lora `, frozen; of adapters: ...` likewise."""
    message = f"parameters: {_counted(*count_parameters(model))}"
    return message if lora is None else f"{message}, frozen; of adapters: {_counted(*count_adapters(model, lora))}"


def _counted(total: int, active: int) -> str:
    short = f"{active / 1e9:.2f} B" if active >= 1e9 else f"{active / 1e6:.2f} M"
    return f"{total:,} ({short} active)"


def memory_lines(config: TrainConfig, world_size: int) -> list[str]:
    """What a rank needs at the least, on a GPU and on a CPU."""
    lines = []
    for where, gpu in (("GPU", True), ("CPU", False)):
        need = memory_per_rank(config, world_size, gpu=gpu)
        lines.append(
            f"memory on a {where}, each of {world_size} rank(s), at least: {format_bytes(need.total)} (states "
            f"{format_bytes(need.states)}, a gathered unit {format_bytes(need.gathered)}, activations "
            f"{format_bytes(need.activations)})"
        )
    return lines


def snapshot_line(config: TrainConfig, world_size: int) -> str:
    """What the copy of a checkpoint takes that is written while training continues."""
    ranks = min(_NODE_RANKS, world_size)
    size = format_bytes(snapshot_bytes(config, world_size, ranks))
    return f"memory of a node of {ranks} rank(s) for the copy that is saved (save_async): {size}"


def checkpoints_line(config: TrainConfig, folder: Path, world_size: int, clock: Clock | None = None) -> str:
    """What checkpoints in the folder will take. clock: of the run's data; without it the number of checkpoints is known
    where no epoch is counted."""
    units = {parse_duration(text)[1] for text in (config.max_duration, config.save_interval)}
    if clock is None and "ep" not in units:
        size = config.global_train_batch_size
        clock = Clock(tokens_per_batch=size * config.max_seq_len, rows_per_batch=size, rows_per_epoch=0)
        clock = clock.until(config.max_duration)
    n_saves = None if clock is None else count_saves(config, clock)
    return describe_space(config, folder, n_saves, world_size=world_size)
