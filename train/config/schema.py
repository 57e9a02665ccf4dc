"""What a YAML says about a run, and which keys contradict one another.

Keys are those of composer.Trainer and of LLM Foundry wherever the thing is the same.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from data.base.durations import parse_duration
from data.base.redaction import is_address, redacted
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
            "HYBRID_SHARD needs the number of replicas, FULL_SHARD has none",
        )


@dataclass(frozen=True, kw_only=True)
class FSDPConfig(Section):
    """How the model is sharded over ranks (FSDP2)."""

    RULES = (_replicas,)

    sharding_strategy: Literal["FULL_SHARD", "HYBRID_SHARD"] = "FULL_SHARD"
    """HYBRID_SHARD shards inside a group of ranks and replicates over data_parallel_replicate_degree groups."""
    data_parallel_replicate_degree: Count | None = None
    """Replicas of HYBRID_SHARD: a divisor of the number of ranks."""
    expert_parallel_degree: Count = 1
    """Ranks that share the experts of a layer: each has 1/N of them whole, and tokens are sent to the ranks that have
    theirs. A divisor of moe_num_experts and of the ranks that shard; at best the GPUs of a node."""
    mixed_precision: Literal["PURE", "DEFAULT", "FULL"] = "DEFAULT"
    """Under amp_bf16, which computes in bf16: the precisions in which weights are gathered and gradients reduced, bf16
    and fp32 (DEFAULT), both bf16 (PURE), or both fp32 (FULL)."""
    state_dict_type: Literal["sharded", "full"] = "sharded"
    """sharded: each rank writes its part of a checkpoint. full: rank 0 gathers all parts and writes them. Both can be
    loaded on any number of ranks."""
    activation_checkpointing: bool | Literal["none", "block", "selective"] = False
    """block (or true) computes a block again in the backward pass; selective keeps the results of its GEMMs and
    computes norms, activation functions and attention again."""
    activation_cpu_offload: bool = False
    """Activations that are kept for the backward pass wait in the memory of the CPU."""
    reshard_after_forward: bool = True
    """Gathered weights are freed after a block's forward pass, and gathered again in the backward pass."""


def _duration_of_run(config: "TrainConfig") -> Iterator[Defect]:
    if parse_duration(config.max_duration)[1] == "dur":
        yield Defect("max_duration", f"is {config.max_duration!r}, but dur is a part of it: write ba, tok or ep")


def _schedule(config: "TrainConfig") -> Iterator[Defect]:
    """As far as the units tell before anything is prepared, as for stages; the rest is compared in batches."""
    for key, text in too_long(config.scheduler, config.max_duration):
        yield Defect(f"scheduler.{key}", text)


def _stages(config: "TrainConfig") -> Iterator[Defect]:
    for key, text in stages_too_long(config.train_loader, config.max_duration):
        yield Defect(f"train_loader.{key}", text)


def _length_of_rows(config: "TrainConfig") -> Iterator[Defect]:
    def is_that_of_the_run(key: str) -> Iterator[Defect]:
        loader = getattr(config, key)
        if loader is not None and loader.dataset.max_seq_len != config.max_seq_len:
            yield Defect(
                f"{key}.dataset.max_seq_len",
                f"is {loader.dataset.max_seq_len}, but max_seq_len is {config.max_seq_len}: write ${{max_seq_len}}",
            )

    yield from each(("train_loader", "eval_loader"), is_that_of_the_run)


def _no_stages_in_evaluation(config: "TrainConfig") -> Iterator[Defect]:
    if config.eval_loader is not None and config.eval_loader.stages:
        yield Defect("eval_loader.stages", "is given, but an evaluation sees every row: leave it out")


def _no_cache_limit_in_evaluation(config: "TrainConfig") -> Iterator[Defect]:
    if config.eval_loader is not None and config.eval_loader.dataset.cache_limit is not None:
        text = "is given, but every evaluation reads all shards: leave it out"
        yield Defect("eval_loader.dataset.cache_limit", text)


def _no_amounts_in_evaluation(config: "TrainConfig") -> Iterator[Defect]:
    def is_whole(item: tuple[str, StreamConfig]) -> Iterator[Defect]:
        for key in item[1].amounts():
            text = "is given, but an evaluation sees every row: leave it out"
            yield Defect(f"eval_loader.dataset.streams.{item[0]}.{key}", text)

    if config.eval_loader is not None:
        yield from each((config.eval_loader.dataset.streams or {}).items(), is_whole)


def _divided_experts(config: "TrainConfig") -> Iterator[Defect]:
    degree = config.fsdp_config.expert_parallel_degree if config.fsdp_config is not None else 1
    if (experts := config.model.ffn_config.moe_num_experts) % degree:
        text = f"is {degree}, but it must divide the {experts} experts (model.ffn_config.moe_num_experts)"
        yield Defect("fsdp_config.expert_parallel_degree", text)


def _length_of_model(config: "TrainConfig") -> Iterator[Defect]:
    if config.max_seq_len > config.model.max_seq_len:
        yield Defect(
            "max_seq_len",
            f"is {config.max_seq_len}, but model.max_seq_len is only {config.model.max_seq_len}: lower the one or "
            "raise the other",
        )


def _length_of_tokenizer(config: "TrainConfig") -> Iterator[Defect]:
    length = config.tokenizer.kwargs.model_max_length
    if length is not None and length != config.max_seq_len:
        yield Defect(
            "tokenizer.kwargs.model_max_length",
            f"is {length}, but max_seq_len is {config.max_seq_len}: write ${{max_seq_len}}, or leave it out",
        )


def _sharded_adapters(config: "TrainConfig") -> Iterator[Defect]:
    if config.lora is not None and config.fsdp_config is None:
        yield Defect(
            "fsdp_config",
            "is null, but lora shards the base apart from its adapters: write fsdp_config: {}, on one rank too",
        )


def _checkpoints_to_export(config: "TrainConfig") -> Iterator[Defect]:
    if config.callbacks.hf_checkpointer is not None and config.save_folder is None:
        text = "is given, but there is no save_folder with checkpoints to export"
        yield Defect("callbacks.hf_checkpointer", text)


def _export_interval(config: "TrainConfig") -> Iterator[Defect]:
    if (exports := config.callbacks.hf_checkpointer) is None:
        return
    lengths = [parse_duration(text) for text in (exports.save_interval, config.save_interval, config.max_duration)]
    (interval, saved, last), units = zip(*lengths, strict=True)
    # The callback compares the rest, when the data has told how many batches they are.
    if set(units) == {"ba"} and interval % saved and interval < last:
        yield Defect(
            "callbacks.hf_checkpointer.save_interval",
            f"is {exports.save_interval}, but checkpoints are saved every {config.save_interval}: write a multiple of "
            "it",
        )


def _adapter_rank(config: "TrainConfig") -> Iterator[Defect]:
    if config.lora is not None and config.lora.r > config.model.d_model:
        yield Defect(
            "lora.r",
            f"is {config.lora.r}, but model.d_model is only {config.model.d_model}, which no rank of an adapter can "
            "exceed: write a smaller one, such as 16",
        )


def _packed_base(config: "TrainConfig") -> Iterator[Defect]:
    if config.lora is not None and config.lora.base_dtype == "nf4" and config.model.d_model % NF4_BLOCK:
        yield Defect(
            "lora.base_dtype",
            f"is nf4, which packs {NF4_BLOCK} numbers of a row at a time, but model.d_model is "
            f"{config.model.d_model}: write bf16",
        )


def _autoresume(config: "TrainConfig") -> Iterator[Defect]:
    if config.autoresume and config.save_folder is None:
        yield Defect("autoresume", "is true, but there is no save_folder to resume from")


def _rollback(config: "TrainConfig") -> Iterator[Defect]:
    if config.on_spike == "rollback" and config.save_folder is None:
        yield Defect("on_spike", "is rollback, but there is no save_folder with checkpoints to return to")


def _first_comparison(config: "TrainConfig") -> Iterator[Defect]:
    if config.spikes.min_steps > config.spikes.window:
        text = f"is {config.spikes.min_steps}, but spikes.window has only {config.spikes.window} steps"
        yield Defect("spikes.min_steps", f"{text}: write at most that")


def _wall_time(config: "TrainConfig") -> Iterator[Defect]:
    if config.max_wall_time is not None and config.save_folder is None:
        yield Defect("max_wall_time", "is given, but there is no save_folder to save into at its end")


def _log_folder(config: "TrainConfig") -> Iterator[Defect]:
    if config.log_folder is not None and is_address(config.log_folder):
        text = f"is {config.log_folder!r}, but logs are written on this machine: name a folder, or leave it out"
        yield Defect("log_folder", f"{text}, and they are sent to save_folder with the checkpoints")


def _profiled_steps(config: "TrainConfig") -> Iterator[Defect]:
    length, unit = parse_duration(config.max_duration)
    if config.profile is not None and unit == "ba":
        yield from config.profile.past_the_end(int(length))


def _names_without_secrets(config: "TrainConfig") -> Iterator[Defect]:
    """In names of folders and metrics, and in checkpoints, which a resume compares, a secret cannot be hidden."""

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
            text = f"has the name {shown!r}, in which there seems to be a secret, but names are written everywhere"
            yield Defect(key, f"{text}: write another")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """A run."""

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
    """Tokens in a row."""
    run_name: Name | None = None
    """null takes $RUN_NAME, and without it a name of the day and time. A single name, without slashes and braces."""
    seed: Seed = 17
    """Of fresh weights, dropout and the order of rows."""

    model: ModelConfig
    lora: LoraConfig | None = None
    """Adapters to train in place of the model. The frozen model is that of model.pretrained_model_name_or_path, or of
    a checkpoint of a whole model at load_path."""
    tokenizer: TokenizerConfig
    train_loader: DataLoaderConfig
    eval_loader: DataLoaderConfig | None = None
    """Data for evaluations; null evaluates nothing."""

    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    algorithms: AlgorithmsConfig = field(default_factory=AlgorithmsConfig)

    max_duration: PositiveDuration
    """Length of the run: batches (ba), tokens (tok) or epochs (ep), such as 1000ba."""
    max_wall_time: WallTime | None = None
    """The time of the process, such as 3h50m, by which it has saved a checkpoint and ended, to be resumed."""
    global_train_batch_size: Count
    """Rows of one step over all ranks."""
    device_train_microbatch_size: Count = 1
    """Rows that a rank computes at a time."""
    device_eval_batch_size: Count = 1
    """Rows that a rank evaluates at a time."""
    eval_interval: PositiveDuration = "1ep"
    """Time between evaluations."""
    eval_first: bool = False
    """Evaluates before the first step as well."""
    eval_subset_num_batches: CountOrAll = -1
    """Batches of an evaluation; -1 takes all."""

    device: Literal["cpu", "gpu"] | None = None
    """null takes the GPU where there is one, else the CPU. A GPU that torch cannot use is an error, but for cpu."""
    precision: Literal["fp32", "amp_bf16"] = "amp_bf16"
    """amp_bf16 becomes fp32 on CPU, and one line says so."""
    fsdp_config: FSDPConfig | None = field(default_factory=FSDPConfig)
    """null replicates the model on every rank (DDP)."""
    dist_timeout: Positive = 600.0
    """Seconds that a rank waits for the others before the run fails. They count from when all ranks are ready to train:
    preparing data may take longer. It is also the longest wait for a connection to rank 0."""

    save_folder: PathOfRun | None = None
    """Where checkpoints go, a folder or s3://BUCKET/PREFIX or gs://BUCKET/PREFIX; {run_name} is filled in, as it is,
    and other braces are refused."""
    save_staging_folder: PathText = ".cache/checkpoints"
    """Where checkpoints are written before they are sent to a save_folder in an object store, and where those that
    load_path names there are fetched to. All nodes have to share it."""
    save_interval: PositiveDuration = "1ep"
    """Time between checkpoints."""
    save_num_checkpoints_to_keep: CountOrAll = -1
    """The newest checkpoints that are kept; -1 keeps all. A checkpoint is deleted once one that is kept has been read
    back from the disk and is right."""
    save_keep_every: Count | None = None
    """Besides the newest ones, every such checkpoint is kept: 10 keeps every tenth; null keeps none."""
    on_save_error: Literal["stop", "warn"] = "stop"
    """When a checkpoint cannot be written, as on a full disk: stop ends the run; warn continues without it, but not
    after the last batch."""
    save_async: bool = True
    """Checkpoints are copied to the memory of the host and written while training continues. Where the copy does not
    fit, and with false, training waits until a checkpoint is written."""
    save_overwrite: bool = False
    """Checkpoints of an earlier run in save_folder may be overwritten."""
    autoresume: bool = False
    """Resume from the newest checkpoint in save_folder."""
    on_corrupt_checkpoint: Literal["fallback", "stop"] = "fallback"
    """When the newest checkpoint's files are not those that were written: fallback resumes from the one before it; stop
    ends the run."""
    load_path: PathText | None = None
    """A checkpoint to start from: a folder, or one in an object store (s3://, gs://); there /latest is the newest."""
    load_weights_only: bool = False
    """Take only the weights from load_path, not the optimizer's state and the position in the data."""

    on_nonfinite: Literal["stop", "skip"] = "stop"
    """When the loss or a gradient of a step is NaN or infinite: stop ends the run, skip continues without that step.
    The weights stay as they were, and the batch is written to save_folder."""
    on_spike: Literal["log", "skip", "rollback"] = "log"
    """When the loss of a step is a spike: log reports it; skip continues without that step; rollback continues with the
    model and optimizer of the newest checkpoint, without the steps since."""
    spikes: SpikesConfig = field(default_factory=SpikesConfig)
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)
    deadlines: DeadlinesConfig = field(default_factory=DeadlinesConfig)
    profile: ProfileConfig | None = None
    """null profiles nothing."""

    progress_bar: bool = True
    """Draw a live bar at the bottom of the terminal. Where the output is no terminal, lines are printed instead."""
    log_to_console: bool | Literal["composer"] = False
    """Print a line for each logged step: for logs that are kept. composer prints them in Composer's own format, and
    draws Composer's own bar."""
    console_log_interval: PositiveDuration | None = None
    """Time between two lines; null takes the least of 1ba, 2ba, 5ba, 10ba and so on with which the run prints at most
    1,000 lines, and 1ba with log_to_console: composer."""
    log_folder: PathOfRun | None = None
    """Where metrics.jsonl, record.jsonl and report.html go, a folder on this machine; {run_name} is filled in. null
    takes save_folder, with which they are also sent to an object store, and without one runs/{run_name}."""
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    loggers: LoggersConfig = field(default_factory=LoggersConfig)
