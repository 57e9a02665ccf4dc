"""Checks whether a run fits on this machine and, if not, computes the number of machines or GPUs on which it would
fit."""

import math
import os
from dataclasses import dataclass

from data.base.console import logger
from data.base.errors import ConfigError
from data.base.sizes import format_bytes, parse_bytes
from train.config.schema import TrainConfig
from train.hardware.device import Device
from train.hardware.memory import cpu_memory, gpu_memory
from train.models.shapes import count_parameters
from train.planning.memory import memory_per_rank
from train.planning.peak import memory_parts

_COMMON_GPU = "80gb"
_USABLE = 0.9
"""The usable share of a GPU's memory. The remaining memory is reserved for fragmentation, CUDA's context and NCCL's
buffers."""


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Required and available memory of a rank in bytes, on its GPU or, without a GPU, in its share of the
    machine's memory."""

    at_least: float
    """The lower bound of the required memory."""
    predicted: float
    """The predicted peak of a step."""
    available: float


def check_machine(config: TrainConfig, world_size: int, device: Device) -> RankMemory:
    """Raise ConfigError if this node's ranks have less memory than the lower bound, and log a warning if they have less
    than predicted. Allocates no memory."""
    local_ranks, gpu = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), device == "gpu"
    need = memory_per_rank(config, world_size, gpu=gpu)
    have = gpu_memory() if gpu else cpu_memory() / local_ranks
    if need.total <= have:
        predicted = memory_parts(config, world_size, gpu=gpu).total
        if predicted > have:
            logger.warning(
                f"memory may be insufficient: {_ranks(world_size)} is predicted to need {format_bytes(predicted)} "
                f"(at least {format_bytes(need.total)}), but has {format_bytes(have, down=True)}; see scripts/plan.py"
            )
        return RankMemory(at_least=need.total, predicted=predicted, available=have)
    total, _ = count_parameters(config.model)
    parts = (
        f"weights, gradients and {config.optimizer.name} states {format_bytes(need.states)}, "
        f"a gathered FSDP unit {format_bytes(need.gathered)}, activations {format_bytes(need.activations)}"
    )
    each = f"{format_bytes(have, down=True)}{'' if local_ranks == 1 or gpu else ' for each rank'}"
    on_cpu = "device is cpu" if config.device == "cpu" else "there is no GPU"
    where = f"its GPU has {each}" if gpu else f"{on_cpu}, and this machine has {each}"
    raise ConfigError(
        f"{total:,} parameters do not fit: {_ranks(world_size)} needs at least {format_bytes(need.total)} ({parts}), "
        f"{format_bytes(need.total * world_size)} in total, but {where}; "
        f"{_hint(config, have, local_ranks, gpu=gpu)}"
    )


def _ranks(world_size: int) -> str:
    return "1 rank" if world_size == 1 else f"each of {world_size} ranks"


def _hint(config: TrainConfig, have: float, local_ranks: int, *, gpu: bool) -> str:
    if config.fsdp_config is None:
        return "remove `fsdp_config: null` to shard the states over the ranks"
    ranks = ranks_that_fit(config, have, gpu=gpu)
    things = "GPUs" if gpu else "machines"
    enough = math.ceil(ranks / (1 if gpu else local_ranks)) if ranks else None
    message = (
        f"at least {enough} such {things} are needed"
        if enough
        else f"the run does not fit on any number of such {things}"
    )
    common = ranks_that_fit(config, parse_bytes(_COMMON_GPU) * _USABLE, gpu=True)
    if common is None or (gpu and ranks):
        return message
    # A node usually has 8 of these GPUs, so the number is rounded up to a multiple of 8.
    gpus = f"{math.ceil(common / 8) * 8} GPUs with {_COMMON_GPU}"
    return f"{message}, or {gpus}" if enough else f"{message}: at least {gpus} are needed"


def ranks_that_fit(config: TrainConfig, have: float, *, gpu: bool) -> int | None:
    """The smallest number of ranks with `have` bytes each on which the sharded run fits. None if no number of ranks is
    sufficient."""
    fsdp = config.fsdp_config
    if fsdp is None:
        return None
    replicas = fsdp.data_parallel_replicate_degree or 1
    if memory_per_rank(config, replicas, gpu=gpu).total <= have:
        return replicas
    # With two or more shards, units are gathered, and only the memory for states decreases with the number of ranks.
    two = memory_per_rank(config, 2 * replicas, gpu=gpu)
    left = have - two.gathered - two.activations
    return max(2, math.ceil(2 * two.states / left)) * replicas if left > 0 else None
