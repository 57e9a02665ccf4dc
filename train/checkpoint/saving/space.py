"""Estimate from the config how much disk space checkpoints need, and check that this space is free. Imports no torch or
numpy."""

import math
import os
import resource
import shutil
from contextlib import suppress
from pathlib import Path

from data.base.console import logger
from data.base.durations import Clock
from data.base.errors import ConfigError, os_errors_named
from data.base.sizes import format_bytes
from data.secrets.redaction import is_address
from train.checkpoint.save_folder import checkpoints, existing_parent
from train.config.schema import TrainConfig
from train.optim.states import is_frozen, n_counters, n_moments, trainable_shapes

_FP32 = 4
"""Bytes per value. Weights and the optimizer's moments are trained and saved in fp32."""
_TENSOR, _RANK = 2 * 2**10, 25 * 2**10
"""Additional bytes per chunk of a tensor (its zip and its entry in torch's index), and per rank (its random state in
state.json). Measured with torch 2.15."""


def checkpoint_bytes(config: TrainConfig, world_size: int = 1) -> int:
    """Return the size of one checkpoint: the weights in fp32 (with lora, only the adapters), and the optimizer state of
    the trained weights."""
    sizes = {name: math.prod(shape) for name, shape in trainable_shapes(config).items()}
    trained = [name for name in sizes if not is_frozen(config, name)]
    moments, counters = n_moments(config.optimizer), n_counters(config.optimizer)
    n_bytes = _FP32 * (sum(sizes.values()) + moments * sum(sizes[name] for name in trained) + counters * len(trained))
    tensors = len(sizes) + moments * len(trained)
    return n_bytes + _RANK * world_size + _TENSOR * (tensors * _shards(config, world_size) + counters * len(trained))


def file_bytes(config: TrainConfig, world_size: int) -> int:
    """Return a lower bound on the size of a checkpoint's largest file. Only tensors are counted. Each rank writes its
    shards to a separate file. With several replicas, only the first replica is saved.
    """
    shards, n_bytes = _shards(config, world_size), 0
    for name, shape in trainable_shapes(config).items():
        kept = 1 if is_frozen(config, name) else 1 + n_moments(config.optimizer)
        # FSDP2 shards along the first dimension, and the first rank's shard is the largest.
        n_bytes += _FP32 * kept * -(-shape[0] // shards) * math.prod(shape[1:])
    return n_bytes


def snapshot_bytes(config: TrainConfig, world_size: int, node_ranks: int) -> int:
    """Return an upper bound on the memory for copies of tensors (save_async) on a node with `node_ranks` ranks."""
    return min(node_ranks, _shards(config, world_size)) * file_bytes(config, world_size)


def count_saves(config: TrainConfig, clock: Clock) -> int:
    """Return the number of checkpoints that the whole run saves: one per save_interval, and one at the end. Requires a
    clock whose `max_batches` is set."""
    assert clock.max_batches is not None
    return math.ceil(clock.max_batches / max(clock.batches(config.save_interval), 1))


def describe_space(config: TrainConfig, folder: Path, n_saves: int | None, *, world_size: int | None = None) -> str:
    """Return a line for the console: the size of a checkpoint, how many checkpoints are kept, and the free space.
    n_saves: the result of count_saves, or None if it is not known. world_size: by default, the number of ranks that the
    launcher started."""
    each = checkpoint_bytes(config, _ranks(world_size))
    line = f"checkpoints: {format_bytes(each)} each, {_kept(config, n_saves)}"
    if (most := _most(config, n_saves)) is not None:
        line += f": at most {format_bytes(most * each)} at a time"
    free = _free(folder)
    return line if free is None else f"{line}, {format_bytes(free, down=True)} are free in {folder}"


def check_space(config: TrainConfig, folder: Path, n_saves: int | None, *, world_size: int | None = None) -> None:
    """Like refuse_space, but also log a warning if the checkpoints that will be kept do not fit on the disk."""
    refuse_space(config, folder, world_size=world_size)
    if (warning := space_warning(config, folder, n_saves, world_size=world_size)) is not None:
        logger.warning(warning)


def refuse_space(config: TrainConfig, folder: Path, *, world_size: int | None = None) -> None:
    """Raise ConfigError if there is not enough space for one checkpoint, or if its files are larger than the process
    may write.

    Checkpoints that save_overwrite will delete count as free space. Quotas and other processes are not considered.
    """
    ranks = _ranks(world_size)
    limit, largest = resource.getrlimit(resource.RLIMIT_FSIZE)[0], file_bytes(config, ranks)
    if limit != resource.RLIM_INFINITY and limit < largest:
        raise ConfigError(
            f"is {folder}, where the largest file of a checkpoint has {_exact(largest)}, but this process cannot write "
            f"files "
            f"larger than {_exact(limit)}: raise the limit (`ulimit -f` shows the shell's limit)",
            key="save_folder",
        )
    if (free := _free(folder)) is None:
        return
    each, there = checkpoint_bytes(config, ranks), sum(map(_bytes_of, checkpoints(folder)))
    if free + (there if config.save_overwrite and not config.autoresume else 0) < each:
        raise ConfigError(
            f"is {folder}, where {_exact(free, down=True)} are free, but one checkpoint takes {_exact(each)}: free "
            "some space, or specify a folder on another disk",
            key="save_folder",
        )


def space_warning(
    config: TrainConfig, folder: Path, n_saves: int | None, *, world_size: int | None = None
) -> str | None:
    """Return a warning if the checkpoints that will be kept do not fit on the disk; None if they fit, or if the free
    space is unknown."""
    free, most = _free(folder), _most(config, n_saves)
    if free is None or most is None:
        return None
    # Checkpoints of an earlier start of this run are among those that will be kept.
    room = free + sum(map(_bytes_of, checkpoints(folder)))
    needed = most * checkpoint_bytes(config, _ranks(world_size))
    if needed <= room:
        return None
    return (
        f"save_folder {folder} has room for {format_bytes(room, down=True)} of checkpoints, but they will take up "
        f"to {format_bytes(needed)} ({_kept(config, n_saves)}): free some space, or lower save_num_checkpoints_to_keep"
    )


def _kept(config: TrainConfig, n_saves: int | None) -> str:
    newest, every = config.save_num_checkpoints_to_keep, config.save_keep_every
    if newest == -1:
        if n_saves == 1:
            return "one is kept"
        return "all are kept" if n_saves is None else f"all {n_saves:,} are kept"
    text = "the newest" if newest == 1 else f"the newest {newest:,}"
    if every is not None:
        return f"{text} and one of every {every:,} are kept"
    return f"{text} {'is' if newest == 1 else 'are'} kept"


def _most(config: TrainConfig, n_saves: int | None) -> int | None:
    """Return the maximum number of checkpoints that exist at a time; None if it depends on n_saves, which is not
    known."""
    newest, every = config.save_num_checkpoints_to_keep, config.save_keep_every
    # The oldest checkpoint is deleted only after the newest is written. In a staging folder, the files of two more
    # checkpoints remain until they are sent.
    more = 3 if config.save_folder is not None and is_address(config.save_folder) else 1
    if n_saves is None:
        return newest + more if newest != -1 and every is None else None
    if newest == -1:
        return n_saves
    older = max(n_saves - newest, 0)
    return min(newest + (older // every if every is not None else 0) + more, n_saves)


def _free(folder: Path) -> int | None:
    """Return the number of free bytes; None if the file system does not report it."""
    with os_errors_named(folder, key="save_folder"):
        usage = shutil.disk_usage(existing_parent(folder))
    return usage.free if usage.total else None


def _bytes_of(path: Path) -> int:
    n_bytes = 0
    for file in path.rglob("*") if path.is_dir() else [path]:
        with suppress(FileNotFoundError):
            n_bytes += file.stat().st_size
    return n_bytes


def _exact(n_bytes: int, *, down: bool = False) -> str:
    return f"{format_bytes(n_bytes, down=down)} ({n_bytes:,} bytes)"


def _shards(config: TrainConfig, world_size: int) -> int:
    """Number of ranks that write shards of tensors."""
    if config.fsdp_config is None or config.fsdp_config.state_dict_type == "full":
        return 1
    return max(world_size // (config.fsdp_config.data_parallel_replicate_degree or 1), 1)


def _ranks(world_size: int | None) -> int:
    return int(os.environ.get("WORLD_SIZE", "1")) if world_size is None else world_size
