"""Callbacks and loggers (to Composer a logger is a callback too), as a YAML has them."""

from dataclasses import dataclass, field
from typing import Literal

from data.base.durations import check_duration
from data.base.paths import check_path
from train.config.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class LRMonitorConfig:
    pass


@dataclass(frozen=True, kw_only=True)
class SpeedMonitorConfig:
    window_size: int = 100
    """Batches over which throughput is averaged."""

    def __post_init__(self) -> None:
        if self.window_size < 1:
            raise ValueError(f"window_size is {self.window_size}, but at least 1 batch is needed")


@dataclass(frozen=True, kw_only=True)
class MemoryMonitorConfig:
    pass


@dataclass(frozen=True, kw_only=True)
class RuntimeEstimatorConfig:
    pass


@dataclass(frozen=True, kw_only=True)
class HFCheckpointerConfig:
    save_folder: str
    """Exports go to huggingface/baN in it; {run_name} is filled in."""
    save_interval: str
    """Of the checkpoints those at this interval, and the last, are exported; a multiple of the run's save_interval."""
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        check_path("save_folder", self.save_folder)
        check_duration("save_interval", self.save_interval, positive=True)


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    prompts: list[str]
    """What the model goes on from, the same each time."""
    interval: str = "1ep"
    """Also at the end of the run."""
    chat: bool = False
    """Each prompt is what a user says, in the chat template."""
    max_new_tokens: int = 64
    temperature: float = 0.0
    """0 always takes the likeliest token; above it is drawn, with top_k, top_p and seed (see Sampling)."""
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("prompts is [], but at least 1 is needed")
        if "" in self.prompts:
            raise ValueError(f"prompts[{self.prompts.index('')}] is '', but there must be something to go on from")
        check_duration("interval", self.interval, positive=True)
        _ = self.sampling  # made to be checked

    @property
    def sampling(self) -> Sampling:
        """Raises ValueError for what it cannot be."""
        return Sampling(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class CallbacksConfig:
    generate: GenerateConfig | None = None
    hf_checkpointer: HFCheckpointerConfig | None = None
    lr_monitor: LRMonitorConfig | None = None
    speed_monitor: SpeedMonitorConfig | None = None
    memory_monitor: MemoryMonitorConfig | None = None
    runtime_estimator: RuntimeEstimatorConfig | None = None


@dataclass(frozen=True, kw_only=True)
class FileLoggerConfig:
    filename: str = "{run_name}/logs-rank{rank}.txt"
    """What the console shows, in a file; {run_name} and {rank} are filled in."""

    def __post_init__(self) -> None:
        check_path("filename", self.filename)


@dataclass(frozen=True, kw_only=True)
class TensorboardLoggerConfig:
    log_dir: str | None = None

    def __post_init__(self) -> None:
        check_path("log_dir", self.log_dir)


@dataclass(frozen=True, kw_only=True)
class WandBLoggerConfig:
    project: str | None = None
    entity: str | None = None
    group: str | None = None
    name: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class LoggersConfig:
    file: FileLoggerConfig | None = None
    tensorboard: TensorboardLoggerConfig | None = None
    wandb: WandBLoggerConfig | None = None
