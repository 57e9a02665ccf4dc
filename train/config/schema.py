"""The config of a run, and the rules that its keys must satisfy together.

Keys have the same names as in composer.Trainer and LLM Foundry if they have the same meaning.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from data.base.durations import parse_duration
from data.config.dataset import StreamConfig
from data.config.loader import DataLoaderConfig, stages_too_long
from data.config.sections import Defect, Section, each
from data.config.tokenizer import TokenizerConfig
from data.config.values import (
    Count,
    CountOrAll,
    Name,
    PathOfRun,
    PathText,
    Positive,
    PositiveDuration,
    Range,
    Seed,
    WallTime,
)
from data.secrets.redaction import is_address, redacted
from train.config.callbacks import CallbacksConfig, LoggersConfig
from train.config.optimizer import AlgorithmsConfig, OptimizerConfig, SchedulerConfig, too_long
from train.config.supervision import DeadlinesConfig, ExpertsConfig, ProfileConfig, SpikesConfig
from train.models.config import LoraConfig, ModelConfig
from train.models.precision import NF4_BLOCK


def _replicas(fsdp: "FSDPConfig") -> Iterator[Defect]:
    hybrid = fsdp.sharding_strategy == "HYBRID_SHARD"
    if hybrid != (fsdp.data_parallel_replicate_degree is not None):
        yield Defect(
            "data_parallel_replicate_degree",
            f"is {fsdp.data_parallel_replicate_degree}, but sharding_strategy is {fsdp.sharding_strategy}: "
            "HYBRID_SHARD requires the number of replicas, and FULL_SHARD requires null",
        )


@dataclass(frozen=True, kw_only=True)
class FSDPConfig(Section):
    """How the model is sharded over ranks (FSDP2)."""

    RULES = (_replicas,)

    sharding_strategy: Literal["FULL_SHARD", "HYBRID_SHARD"] = "FULL_SHARD"
    """`FULL_SHARD` shards the model over all ranks. `HYBRID_SHARD` shards the model inside each group of ranks, and
    replicates it over `data_parallel_replicate_degree` groups."""
    data_parallel_replicate_degree: Count | None = None
    """Number of replicas under `HYBRID_SHARD`. Must divide the number of ranks."""
    expert_parallel_degree: Count = 1
    """Number N of ranks that share the experts of a layer. Each of these ranks has 1/N of the experts, unsharded, and
    tokens are sent to the ranks that have their experts. N must divide `moe_num_experts` and the number of ranks of a
    replica. Ideally, N is the number of GPUs of a node."""
    mixed_precision: Literal["PURE", "DEFAULT", "FULL"] = "DEFAULT"
    """With `precision: amp_bf16`, this key selects the dtypes in which weights are gathered and gradients are reduced.
    `DEFAULT` gathers in bf16 and reduces in fp32. `PURE` uses bf16 for both, and `FULL` uses fp32 for both. The
    computation is always in bf16."""
    state_dict_type: Literal["sharded", "full"] = "sharded"
    """`sharded`: each rank writes its own shards of a checkpoint. `full`: rank 0 gathers all shards and writes them.
    Both kinds of checkpoints can be loaded on any number of ranks."""
    activation_checkpointing: bool | Literal["none", "block", "selective"] = False
    """`block` (or `true`) recomputes whole transformer blocks in the backward pass. `selective` keeps the results of
    GEMMs in memory, and recomputes only norms, activation functions and attention. `none` (or `false`) recomputes
    nothing."""
    activation_cpu_offload: bool = False
    """Store the activations for the backward pass in CPU memory (offloading)."""
    reshard_after_forward: bool = True
    """Free the gathered weights of a block after its forward pass, and gather them again for its backward pass."""


def _duration_of_run(config: "TrainConfig") -> Iterator[Defect]:
    if parse_duration(config.max_duration)[1] == "dur":
        yield Defect(
            "max_duration",
            f"is {config.max_duration!r}, but dur is a fraction of max_duration itself: use ba, tok or ep",
        )


def _schedule(config: "TrainConfig") -> Iterator[Defect]:
    """Check only durations whose units can be compared, as _stages does. Other durations are checked once their lengths
    in batches are known."""
    for key, text in too_long(config.scheduler, config.max_duration):
        yield Defect(f"scheduler.{key}", text)


def _stages(config: "TrainConfig") -> Iterator[Defect]:
    for key, text in stages_too_long(config.train_loader, config.max_duration):
        yield Defect(f"train_loader.{key}", text)


def _length_of_rows(config: "TrainConfig") -> Iterator[Defect]:
    def matches_the_run(key: str) -> Iterator[Defect]:
        loader = getattr(config, key)
        if loader is not None and loader.dataset.max_seq_len != config.max_seq_len:
            yield Defect(
                f"{key}.dataset.max_seq_len",
                f"is {loader.dataset.max_seq_len}, but max_seq_len is {config.max_seq_len}: use ${{max_seq_len}}",
            )

    yield from each(("train_loader", "eval_loader"), matches_the_run)


def _no_stages_in_evaluation(config: "TrainConfig") -> Iterator[Defect]:
    if config.eval_loader is not None and config.eval_loader.stages:
        yield Defect("eval_loader.stages", "is set, but an evaluation uses every row: remove the key")


def _no_cache_limit_in_evaluation(config: "TrainConfig") -> Iterator[Defect]:
    if config.eval_loader is not None and config.eval_loader.dataset.cache_limit is not None:
        text = "is set, but every evaluation reads all shards: remove the key"
        yield Defect("eval_loader.dataset.cache_limit", text)


def _no_amounts_in_evaluation(config: "TrainConfig") -> Iterator[Defect]:
    def is_whole(item: tuple[str, StreamConfig]) -> Iterator[Defect]:
        for key in item[1].amounts():
            text = "is set, but an evaluation uses every row: remove the key"
            yield Defect(f"eval_loader.dataset.streams.{item[0]}.{key}", text)

    if config.eval_loader is not None:
        yield from each((config.eval_loader.dataset.streams or {}).items(), is_whole)


def _divided_experts(config: "TrainConfig") -> Iterator[Defect]:
    degree = config.fsdp_config.expert_parallel_degree if config.fsdp_config is not None else 1
    if (experts := config.model.ffn_config.moe_num_experts) % degree:
        text = f"is {degree}, but it must divide model.ffn_config.moe_num_experts ({experts})"
        yield Defect("fsdp_config.expert_parallel_degree", text)


def _length_of_model(config: "TrainConfig") -> Iterator[Defect]:
    if config.max_seq_len > config.model.max_seq_len:
        yield Defect(
            "max_seq_len",
            f"is {config.max_seq_len}, but model.max_seq_len is only {config.model.max_seq_len}: lower max_seq_len or "
            "raise model.max_seq_len",
        )


def _length_of_tokenizer(config: "TrainConfig") -> Iterator[Defect]:
    length = config.tokenizer.kwargs.model_max_length
    if length is not None and length != config.max_seq_len:
        yield Defect(
            "tokenizer.kwargs.model_max_length",
            f"is {length}, but max_seq_len is {config.max_seq_len}: use ${{max_seq_len}}, or remove the key",
        )


def _sharded_adapters(config: "TrainConfig") -> Iterator[Defect]:
    if config.lora is not None and config.fsdp_config is None:
        yield Defect(
            "fsdp_config",
            "is null, but lora shards the base and its adapters separately: use fsdp_config: {}, even on one rank",
        )


def _checkpoints_to_export(config: "TrainConfig") -> Iterator[Defect]:
    if config.callbacks.hf_checkpointer is not None and config.save_folder is None:
        text = "is set, but there is no save_folder with checkpoints to export"
        yield Defect("callbacks.hf_checkpointer", text)


def _export_interval(config: "TrainConfig") -> Iterator[Defect]:
    if (exports := config.callbacks.hf_checkpointer) is None:
        return
    lengths = [parse_duration(text) for text in (exports.save_interval, config.save_interval, config.max_duration)]
    (interval, saved, last), units = zip(*lengths, strict=True)
    # The callback checks durations in other units, once the data is open and their lengths in batches are known.
    if set(units) == {"ba"} and interval % saved and interval < last:
        yield Defect(
            "callbacks.hf_checkpointer.save_interval",
            f"is {exports.save_interval}, but checkpoints are saved every {config.save_interval}: use a multiple of "
            "this interval",
        )


def _adapter_rank(config: "TrainConfig") -> Iterator[Defect]:
    if config.lora is not None and config.lora.r > config.model.d_model:
        yield Defect(
            "lora.r",
            f"is {config.lora.r}, but it cannot exceed model.d_model, which is {config.model.d_model}: use a smaller "
            "rank, such as 16",
        )


def _packed_base(config: "TrainConfig") -> Iterator[Defect]:
    if config.lora is not None and config.lora.base_dtype == "nf4" and config.model.d_model % NF4_BLOCK:
        yield Defect(
            "lora.base_dtype",
            f"is nf4, which packs blocks of {NF4_BLOCK} values within a row, but model.d_model is "
            f"{config.model.d_model}: use bf16",
        )


def _autoresume(config: "TrainConfig") -> Iterator[Defect]:
    if config.autoresume and config.save_folder is None:
        yield Defect("autoresume", "is true, but there is no save_folder to resume from")


def _rollback(config: "TrainConfig") -> Iterator[Defect]:
    if config.on_spike == "rollback" and config.save_folder is None:
        yield Defect("on_spike", "is rollback, but there is no save_folder with checkpoints to restore")


def _first_comparison(config: "TrainConfig") -> Iterator[Defect]:
    if config.spikes.min_steps > config.spikes.window:
        text = f"is {config.spikes.min_steps}, but spikes.window has only {config.spikes.window} steps"
        yield Defect("spikes.min_steps", f"{text}: use at most {config.spikes.window}")


def _wall_time(config: "TrainConfig") -> Iterator[Defect]:
    if config.max_wall_time is not None and config.save_folder is None:
        yield Defect("max_wall_time", "is set, but there is no save_folder for the last checkpoint")


def _log_folder(config: "TrainConfig") -> Iterator[Defect]:
    if config.log_folder is not None and is_address(config.log_folder):
        text = (
            f"is {config.log_folder!r}, but logs are written on this machine: specify a local folder, or remove the key"
        )
        yield Defect("log_folder", f"{text} to store logs in save_folder with the checkpoints")


def _profiled_steps(config: "TrainConfig") -> Iterator[Defect]:
    length, unit = parse_duration(config.max_duration)
    if config.profile is not None and unit == "ba":
        yield from config.profile.past_the_end(int(length))


def _names_without_secrets(config: "TrainConfig") -> Iterator[Defect]:
    """Refuse names that contain a secret. A name cannot be masked, because it is used in folders, metrics and
    checkpoints, and is compared when a run is resumed."""

    def names_of(key: str) -> Iterator[Defect]:
        if key == "run_name":
            yield from _secret_names(key, [config.run_name or ""])
        elif (loader := getattr(config, key)) is not None:
            yield from _secret_names(f"{key}.dataset.streams", loader.dataset.streams or {})
            yield from _secret_names(f"{key}.stages", [stage.name for stage in loader.stages])

    yield from each(("run_name", "train_loader", "eval_loader"), names_of)


def _secret_names(key: str, names: Iterable[str]) -> Iterator[Defect]:
    for name in names:
        if (shown := redacted(name)) != name:
            text = f"has the name {shown!r}, which seems to contain a secret, but names are written to logs and files"
            yield Defect(key, f"{text}: use another name")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """The config of a run."""

    RULES = (
        _duration_of_run,
        _schedule,
        _stages,
        _length_of_rows,
        _no_stages_in_evaluation,
        _no_cache_limit_in_evaluation,
        _no_amounts_in_evaluation,
        _length_of_model,
        _length_of_tokenizer,
        _sharded_adapters,
        _checkpoints_to_export,
        _export_interval,
        _adapter_rank,
        _packed_base,
        _divided_experts,
        _autoresume,
        _rollback,
        _first_comparison,
        _wall_time,
        _log_folder,
        _profiled_steps,
        _names_without_secrets,
    )

    max_seq_len: Annotated[int, Range(ge=2)]
    """Number of tokens in a row."""
    run_name: Name | None = None
    """Name of the run, without slashes or braces. `null` uses `$RUN_NAME`. If this variable is not set, `null` uses a
    name with the date and time."""
    seed: Seed = 17
    """Random seed for the initial weights, dropout and the order of rows."""

    model: ModelConfig
    lora: LoraConfig | None = None
    """Train adapters instead of the whole model. The frozen base model is `model.pretrained_model_name_or_path`, or a
    checkpoint of a whole model at `load_path`."""
    tokenizer: TokenizerConfig
    train_loader: DataLoaderConfig
    eval_loader: DataLoaderConfig | None = None
    """Data for evaluation; `null` disables it."""

    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    algorithms: AlgorithmsConfig = field(default_factory=AlgorithmsConfig)

    max_duration: PositiveDuration
    """Length of the run in batches (`ba`), tokens (`tok`) or epochs (`ep`), such as `1000ba`."""
    max_wall_time: WallTime | None = None
    """Maximum run time of the process, such as `3h50m`. Shortly before this time is reached, the run saves a checkpoint
    and ends, so that it can be resumed."""
    global_train_batch_size: Count
    """Number of rows in a step, over all ranks."""
    device_train_microbatch_size: Count = 1
    """Number of rows that a rank processes at a time in training."""
    device_eval_batch_size: Count = 1
    """Number of rows that a rank processes at a time in evaluation."""
    eval_interval: PositiveDuration = "1ep"
    """Interval between evaluations."""
    eval_first: bool = False
    """Also run an evaluation before the first step."""
    eval_subset_num_batches: CountOrAll = -1
    """Number of batches in an evaluation; `-1` uses all batches."""

    device: Literal["cpu", "gpu"] | None = None
    """The device to train on. `null` selects a GPU if the machine has one, and the CPU otherwise. If the machine has a
    GPU that torch cannot use, only `cpu` is accepted."""
    precision: Literal["fp32", "amp_bf16"] = "amp_bf16"
    """The precision of the computation. On a CPU, `amp_bf16` is replaced by `fp32`, and a message is logged."""
    fsdp_config: FSDPConfig | None = field(default_factory=FSDPConfig)
    """How the model is sharded over ranks (FSDP2). `null` replicates the model on every rank instead (DDP)."""
    dist_timeout: Positive = 600.0
    """Maximum time, in seconds, that a rank waits for other ranks before the run fails. The time is counted only after
    all ranks are ready to train, so preparing data may take longer. The same limit applies to connecting to rank 0."""

    save_folder: PathOfRun | None = None
    """Folder of the checkpoints: a path, `s3://BUCKET/PREFIX` or `gs://BUCKET/PREFIX`. `{run_name}` is replaced by the
    name of the run; other braces are not allowed."""
    save_staging_folder: PathText = ".cache/checkpoints"
    """Local folder for checkpoints that are uploaded to a `save_folder`, or downloaded from a `load_path`, in an object
    store. All nodes must share this folder."""
    save_interval: PositiveDuration = "1ep"
    """Interval between checkpoints."""
    save_num_checkpoints_to_keep: CountOrAll = -1
    """Number of newest checkpoints to keep; `-1` keeps all. Before a run deletes old checkpoints, it verifies one of
    the remaining checkpoints by reading it from disk."""
    save_keep_every: Count | None = None
    """Also keep every N-th checkpoint; for example, `10` keeps every tenth. `null` keeps only the checkpoints that
    `save_num_checkpoints_to_keep` keeps."""
    on_save_error: Literal["stop", "warn"] = "stop"
    """What to do if a checkpoint cannot be written, for example because the disk is full. `stop` ends the run. `warn`
    continues without this checkpoint, unless it is the last checkpoint of the run."""
    save_async: bool = True
    """Copy checkpoints to CPU memory and write them while training continues. If `false`, or if there is not enough
    memory for the copy, training waits until a checkpoint is written."""
    save_overwrite: bool = False
    """Allow a new run to overwrite the checkpoints of an earlier run in `save_folder`."""
    autoresume: bool = False
    """Resume from the newest checkpoint in `save_folder`."""
    on_corrupt_checkpoint: Literal["fallback", "stop"] = "fallback"
    """What to do if the newest checkpoint is corrupt. `fallback` resumes from the previous checkpoint. `stop` ends the
    run."""
    load_path: PathText | None = None
    """Checkpoint to start from: a local path, or an address that starts with `s3://` or `gs://`. In an object store, an
    address that ends with `/latest` refers to the newest checkpoint."""
    load_weights_only: bool = False
    """Load only the weights from `load_path`, not the optimizer state or the position in the data."""

    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do if the loss or a gradient of a step is NaN or infinite. `stop` ends the run. `skip` continues without
    this step. In both cases, the step does not change the weights, and the batch is written to `save_folder`."""
    on_spike: Literal["log", "skip", "rollback"] = "log"
    """What to do if the loss of a step is a spike. `log` only reports the spike. `skip` reports it and continues
    without this step. `rollback` restores the model and the optimizer from the newest checkpoint, and continues with
    the next batch."""
    spikes: SpikesConfig = field(default_factory=SpikesConfig)
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)
    deadlines: DeadlinesConfig = field(default_factory=DeadlinesConfig)
    profile: ProfileConfig | None = None
    """Profiling of single steps with `torch.profiler`. `null` disables profiling."""

    progress_bar: bool = True
    """Show a live progress bar at the bottom of the terminal. If the output is not a terminal, lines are printed
    instead."""
    log_to_console: bool | Literal["composer"] = False
    """Print a line for each logged step, even on a terminal. `composer` uses Composer's own format and progress bar."""
    console_log_interval: PositiveDuration | None = None
    """Interval between two printed lines. `null` selects the smallest of the intervals `1ba`, `2ba`, `5ba`, `10ba` and
    so on with which the run prints at most 1,000 lines. With `log_to_console: composer`, `null` selects `1ba`."""
    log_folder: PathOfRun | None = None
    """Local folder for `metrics.jsonl`, `record.jsonl` and `report.html`. `{run_name}` is replaced by the name of the
    run. `null` uses `save_folder`, or `runs/{run_name}` if there is no `save_folder`. If `save_folder` is in an object
    store, the logs are uploaded there, too."""
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    loggers: LoggersConfig = field(default_factory=LoggersConfig)
