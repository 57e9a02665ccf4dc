"""What a YAML says about a run, and which keys contradict one another.

Keys are those of composer.Trainer and of LLM Foundry wherever the thing is the same. Checks raise ValueError with
the key relative to the class; train/config/load.py puts the path before it.
"""

import math
import os
from dataclasses import dataclass, field
from typing import Literal

from data.base.durations import check_duration, parse_duration
from data.base.paths import check_path
from data.config.loader import DataLoaderConfig
from data.config.tokenizer import TokenizerConfig
from train.config.callbacks import CallbacksConfig, LoggersConfig
from train.config.optimizer import AlgorithmsConfig, OptimizerConfig, SchedulerConfig
from train.models.config import MEGABLOCKS_LIMIT, LoraConfig, ModelConfig


@dataclass(frozen=True, kw_only=True)
class FSDPConfig:
    sharding_strategy: Literal["FULL_SHARD", "HYBRID_SHARD"] = "FULL_SHARD"
    """HYBRID_SHARD shards inside a group of ranks and replicates over data_parallel_replicate_degree groups."""
    data_parallel_replicate_degree: int | None = None
    mixed_precision: Literal["PURE", "DEFAULT", "FULL"] = "DEFAULT"
    """Under amp_bf16, which computes in bf16: the precisions in which weights are gathered and gradients reduced, bf16
    and fp32 (DEFAULT), both bf16 (PURE), or both fp32 (FULL)."""
    state_dict_type: Literal["sharded", "full"] = "sharded"
    activation_checkpointing: bool | Literal["none", "block", "selective"] = False
    """block (or true) computes a block again in the backward pass; selective keeps the results of its GEMMs and
    computes norms, activation functions and attention again."""
    activation_cpu_offload: bool = False
    reshard_after_forward: bool = True

    def __post_init__(self) -> None:
        hybrid = self.sharding_strategy == "HYBRID_SHARD"
        if hybrid != (self.data_parallel_replicate_degree is not None):
            raise ValueError(
                f"data_parallel_replicate_degree is {self.data_parallel_replicate_degree}, but sharding_strategy is "
                f"{self.sharding_strategy}: HYBRID_SHARD needs the number of replicas, FULL_SHARD has none"
            )
        if hybrid and (self.data_parallel_replicate_degree or 0) < 1:
            raise ValueError(f"data_parallel_replicate_degree is {self.data_parallel_replicate_degree}, but 1 is least")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    max_seq_len: int
    run_name: str | None = None
    """null takes $RUN_NAME, and without it a name of the day and time."""
    seed: int = 17

    model: ModelConfig
    lora: LoraConfig | None = None
    """Adapters to train in place of the model. The frozen model is that of model.pretrained_model_name_or_path, or of
    a checkpoint of a whole model at load_path."""
    tokenizer: TokenizerConfig
    train_loader: DataLoaderConfig
    eval_loader: DataLoaderConfig | None = None

    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    algorithms: AlgorithmsConfig = field(default_factory=AlgorithmsConfig)

    max_duration: str
    global_train_batch_size: int
    """Rows of one step over all ranks."""
    device_train_microbatch_size: int = 1
    """Rows that a rank computes at a time."""
    device_eval_batch_size: int = 1
    eval_interval: str = "1ep"
    eval_first: bool = False
    eval_subset_num_batches: int = -1

    device: Literal["cpu", "gpu"] | None = None
    """null takes the GPU where there is one, else the CPU. A GPU that torch cannot use is an error, but for cpu."""
    precision: Literal["fp32", "amp_bf16"] = "amp_bf16"
    """amp_bf16 becomes fp32 on CPU, and one line says so."""
    fsdp_config: FSDPConfig | None = field(default_factory=FSDPConfig)
    """null replicates the model on every rank (DDP)."""
    dist_timeout: float = 600.0
    """Seconds that a rank waits for the others before the run fails."""

    save_folder: str | None = None
    """Where checkpoints go; {run_name} is filled in."""
    save_interval: str = "1ep"
    save_num_checkpoints_to_keep: int = -1
    save_overwrite: bool = False
    autoresume: bool = False
    """Go on from the newest complete checkpoint in save_folder."""
    load_path: str | None = None
    load_weights_only: bool = False

    progress_bar: bool = True
    log_to_console: bool = False
    """Lines where progress_bar draws: for logs that are kept. Composer advises against both."""
    console_log_interval: str = "1ba"
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    loggers: LoggersConfig = field(default_factory=LoggersConfig)

    def __post_init__(self) -> None:
        self._check_values()
        self._check_warmup()
        self._check_loaders()
        self._check_lengths()
        # What an adapter needs of fsdp_config is said before what an export needs of it.
        self._check_lora_saving()
        self._check_exported()
        self._check_lora_shape()
        if self.autoresume and self.save_folder is None:
            raise ValueError("autoresume is true, but there is no save_folder to resume from")

    def _check_values(self) -> None:
        """Of single keys."""
        for name in ("run_name", "save_folder", "load_path"):
            check_path(name, getattr(self, name))
        for name in ("global_train_batch_size", "device_train_microbatch_size", "device_eval_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but at least 1 is needed")
        for name in ("max_duration", "eval_interval", "save_interval", "console_log_interval"):
            check_duration(name, getattr(self, name), positive=True)
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}, but it must be in [0, 2**32)")
        for name in ("eval_subset_num_batches", "save_num_checkpoints_to_keep"):
            if (number := getattr(self, name)) != -1 and number < 1:
                raise ValueError(f"{name} is {number}, but -1 (all) or 1 is the least")
        if parse_duration(self.max_duration)[1] == "dur":
            raise ValueError(f"max_duration is {self.max_duration!r}, but dur is a part of it: write ba, tok or ep")

    def _check_warmup(self) -> None:
        """As far as the units tell before anything is prepared; the scheduler compares the rest in batches."""
        length, of = parse_duration(self.scheduler.t_warmup)
        most, unit = (1.0, "dur") if of == "dur" else parse_duration(self.max_duration)
        if of == unit and length > most:
            raise ValueError(
                f"scheduler.t_warmup is {self.scheduler.t_warmup}, but max_duration is only {self.max_duration}: write "
                "a shorter one"
            )

    def _check_loaders(self) -> None:
        for key, loader in (("train_loader", self.train_loader), ("eval_loader", self.eval_loader)):
            if loader is not None and loader.dataset.max_seq_len != self.max_seq_len:
                raise ValueError(
                    f"{key}.dataset.max_seq_len is {loader.dataset.max_seq_len}, but max_seq_len is "
                    f"{self.max_seq_len}: write ${{max_seq_len}}"
                )
        if self.eval_loader is None:
            return
        if self.eval_loader.stages:
            raise ValueError("eval_loader.stages is given, but an evaluation sees every row: leave it out")
        if self.eval_loader.dataset.cache_limit is not None:
            raise ValueError(
                "eval_loader.dataset.cache_limit is given, but every evaluation reads all shards: leave it out"
            )
        for name, stream in (self.eval_loader.dataset.streams or {}).items():
            if stream.amounts():
                raise ValueError(
                    f"eval_loader.dataset.streams.{name}.{stream.amounts()[0]} is given, but an evaluation sees every "
                    "row: leave it out"
                )

    def _check_lengths(self) -> None:
        if self.max_seq_len > self.model.max_seq_len:
            raise ValueError(
                f"max_seq_len is {self.max_seq_len}, but model.max_seq_len is only {self.model.max_seq_len}: "
                "lower the one or raise the other"
            )
        length = self.tokenizer.kwargs.model_max_length
        if length is not None and length != self.max_seq_len:
            raise ValueError(
                f"tokenizer.kwargs.model_max_length is {length}, but max_seq_len is {self.max_seq_len}: "
                "write ${max_seq_len}, or leave it out"
            )

    def _check_lora_saving(self) -> None:
        if self.lora is not None and (self.fsdp_config is None or self.fsdp_config.state_dict_type != "sharded"):
            found = "null" if self.fsdp_config is None else "{state_dict_type: full}"
            raise ValueError(
                f"fsdp_config is {found}, but lora shards the base apart from its adapters, and saves these alone: "
                "write fsdp_config: {state_dict_type: sharded}, on one rank too"
            )

    def _check_exported(self) -> None:
        if (exports := self.callbacks.hf_checkpointer) is None:
            return
        if self.save_folder is None:
            raise ValueError(
                "callbacks.hf_checkpointer is given, but there is no save_folder with checkpoints to export"
            )
        if self.fsdp_config is None or self.fsdp_config.state_dict_type != "sharded":
            raise ValueError(
                "callbacks.hf_checkpointer is given, but it exports sharded checkpoints alone: write "
                "fsdp_config.state_dict_type: sharded"
            )
        lengths = [parse_duration(text) for text in (exports.save_interval, self.save_interval, self.max_duration)]
        (interval, saved, last), units = zip(*lengths, strict=True)
        # The callback compares the rest, when the data has told how many batches they are.
        if set(units) == {"ba"} and interval % saved and interval < last:
            raise ValueError(
                f"callbacks.hf_checkpointer.save_interval is {exports.save_interval}, but checkpoints are saved every "
                f"{self.save_interval}: write a multiple of it"
            )

    def _check_lora_shape(self) -> None:
        if self.lora is None:
            return
        if self.lora.r > self.model.d_model:
            raise ValueError(
                f"lora.r is {self.lora.r}, but model.d_model is only {self.model.d_model}, which no rank of an adapter "
                "can exceed: write a smaller one, such as 16"
            )
        if self.lora.base_dtype == "nf4" and self.model.d_model % 64:
            raise ValueError(
                f"lora.base_dtype is nf4, which packs 64 numbers of a row at a time, but model.d_model is "
                f"{self.model.d_model}: write bf16"
            )


def check_run_name(config: TrainConfig) -> None:
    """Raises ValueError when a later start of this run would not find its checkpoints."""
    named = config.run_name or os.environ.get("RUN_NAME")
    if config.autoresume and not named and "{run_name}" in str(config.save_folder):
        raise ValueError("autoresume is true, but without run_name (or $RUN_NAME) no later start would find this run")


def check_world_size(config: TrainConfig, world_size: int) -> None:
    """Raises ValueError when the run cannot be cut for so many ranks."""
    rows = config.global_train_batch_size
    if rows % world_size:
        raise ValueError(f"global_train_batch_size is {rows}, but it must be divisible by the {world_size} ranks")
    replicas = config.fsdp_config.data_parallel_replicate_degree if config.fsdp_config else None
    if replicas is not None and world_size % replicas:
        raise ValueError(
            f"fsdp_config.data_parallel_replicate_degree is {replicas}, but it must divide the {world_size} ranks"
        )


def train_microbatch_rows(config: TrainConfig, world_size: int) -> int:
    """Rows of a training microbatch on each rank: at most those of the rank's part of the global batch."""
    return min(config.device_train_microbatch_size, config.global_train_batch_size // world_size)


def microbatch_rows(config: TrainConfig, world_size: int) -> dict[str, int]:
    """Rows that a rank computes at a time, by the key that sets them."""
    evaluated = {"device_eval_batch_size": config.device_eval_batch_size} if config.eval_loader is not None else {}
    return {"device_train_microbatch_size": train_microbatch_rows(config, world_size)} | evaluated


def check_kernel_sizes(config: TrainConfig, world_size: int) -> None:
    """Raises ValueError when a microbatch has more tokens than moe_impl's kernels can address."""
    if config.model.ffn_config.moe_impl != "megablocks":
        return
    for key, n_rows in microbatch_rows(config, world_size).items():
        sizes = {
            key: n_rows,
            "max_seq_len": config.max_seq_len,
            "model.ffn_config.moe_top_k": config.model.ffn_config.moe_top_k,
            "model.d_model": config.model.d_model,
        }
        if (product := math.prod(sizes.values())) >= MEGABLOCKS_LIMIT:
            raise ValueError(
                "model.ffn_config.moe_impl is megablocks, whose kernels compute addresses in 32 bits, but "
                f"{' x '.join(f'{name} ({size:,})' for name, size in sizes.items())} is {product:,}, which must be "
                f"below 2**31 = {MEGABLOCKS_LIMIT:,}: lower {key} or max_seq_len, or write grouped_mm or auto"
            )
