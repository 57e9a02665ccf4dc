"""Checks of a config that depend on the number of ranks and on the environment."""

import math
import os
from collections.abc import Iterator

from data.base.errors import ConfigError
from data.base.paths import name_defect
from data.config.sections import Defect, raise_defects
from train.config.schema import TrainConfig
from train.models.config import MEGABLOCKS_LIMIT


def check_run_name(config: TrainConfig) -> None:
    """Raise ConfigError if $RUN_NAME is not a valid name, or if a later start of this run could not find its
    checkpoints."""
    named = config.run_name or run_name_of_environment()
    if config.autoresume and not named and "{run_name}" in str(config.save_folder):
        text = "is true, but without run_name (or $RUN_NAME) a later start could not find this run: set run_name"
        raise_defects([Defect("autoresume", text)])


def run_name_of_environment() -> str | None:
    """Return $RUN_NAME, or None if it is not set. Raises ConfigError if it is not a valid run_name."""
    name = os.environ.get("RUN_NAME")
    if (defect := name_defect(name)) is not None:
        raise ConfigError(f"(from $RUN_NAME) {defect}", key="run_name")
    return name


def check_world_size(config: TrainConfig, world_size: int) -> None:
    """Raise ConfigError if the run cannot be divided among `world_size` ranks."""
    raise_defects(_of_world_size(config, world_size))


def _of_world_size(config: TrainConfig, world_size: int) -> Iterator[Defect]:
    rows = config.global_train_batch_size
    if rows % world_size:
        yield Defect(
            "global_train_batch_size", f"is {rows}, but it must be divisible by the number of ranks ({world_size})"
        )
    if config.profile is not None and (absent := [rank for rank in config.profile.ranks if rank >= world_size]):
        yield Defect("profile.ranks", f"contains {absent[0]}, but the ranks of this run are 0 to {world_size - 1}")
    replicas = config.fsdp_config.data_parallel_replicate_degree if config.fsdp_config else None
    if replicas is not None and world_size % replicas:
        text = f"is {replicas}, but it must divide the number of ranks ({world_size})"
        yield Defect("fsdp_config.data_parallel_replicate_degree", text)
    elif config.fsdp_config is not None:
        yield from _of_expert_parallelism(
            config, config.fsdp_config.expert_parallel_degree, world_size // (replicas or 1)
        )


def _of_expert_parallelism(config: TrainConfig, degree: int, shards: int) -> Iterator[Defect]:
    """shards: the number of ranks over which one replica of the model is sharded."""
    key, ffn = "fsdp_config.expert_parallel_degree", config.model.ffn_config
    if degree == 1:
        return
    if shards % degree:
        yield Defect(
            key, f"is {degree}, but it must divide the number of ranks over which a replica is sharded ({shards})"
        )
    elif (rows := ffn.moe_num_experts * ffn.ffn_hidden_size) % shards:
        yield Defect(
            key,
            f"is {degree}, but moe_num_experts x ffn_hidden_size = {rows} rows cannot be divided evenly over {shards} "
            "ranks: use a number of ranks that divides the rows, or set the degree to 1",
        )


def train_microbatch_rows(config: TrainConfig, world_size: int) -> int:
    """Return the number of rows in a rank's training microbatch, which is at most the rank's share of the global
    batch."""
    return min(config.device_train_microbatch_size, config.global_train_batch_size // world_size)


def microbatch_rows(config: TrainConfig, world_size: int) -> dict[str, int]:
    """Return the numbers of rows that a rank processes at a time in training and in evaluation, by the key that sets
    them."""
    evaluated = {"device_eval_batch_size": config.device_eval_batch_size} if config.eval_loader is not None else {}
    return {"device_train_microbatch_size": train_microbatch_rows(config, world_size)} | evaluated


def routed_sizes(config: TrainConfig, n_rows: int) -> tuple[int, int, int]:
    """Return upper bounds for one microbatch of n_rows on one rank: (tokens, experts per token, d_model).

    With expert parallelism, the tokens of all ranks that share the experts are counted: in the worst case, each of
    these tokens selects as many of this rank's experts as possible.
    """
    ffn, degree = config.model.ffn_config, _expert_ranks(config)
    experts_a_token = min(ffn.moe_top_k, max(ffn.moe_num_experts // degree, 1))
    return n_rows * config.max_seq_len * degree, experts_a_token, config.model.d_model


def _expert_ranks(config: TrainConfig) -> int:
    return config.fsdp_config.expert_parallel_degree if config.fsdp_config is not None else 1


def check_kernel_sizes(config: TrainConfig, world_size: int) -> None:
    """Raise ConfigError if moe_impl's kernels cannot address all values that a rank's experts may process at a time."""
    raise_defects(_of_kernel_sizes(config, world_size))


def _of_kernel_sizes(config: TrainConfig, world_size: int) -> Iterator[Defect]:
    if config.model.ffn_config.moe_impl != "megablocks":
        return
    for key, n_rows in microbatch_rows(config, world_size).items():
        _, experts_a_token, d_model = routed = routed_sizes(config, n_rows)
        sizes = {key: n_rows, "max_seq_len": config.max_seq_len}
        if (degree := _expert_ranks(config)) > 1:
            sizes |= {"fsdp_config.expert_parallel_degree": degree, "experts per token on one rank": experts_a_token}
        else:
            sizes["model.ffn_config.moe_top_k"] = experts_a_token
        sizes["model.d_model"] = d_model
        if (product := math.prod(routed)) >= MEGABLOCKS_LIMIT:
            yield Defect(
                "model.ffn_config.moe_impl",
                "is megablocks, whose kernels compute addresses in 32 bits, but "
                f"{' x '.join(f'{name} ({size:,})' for name, size in sizes.items())} is {product:,}, which must be "
                f"below 2**31 = {MEGABLOCKS_LIMIT:,}: lower {key} or max_seq_len, or use grouped_mm or auto",
            )
