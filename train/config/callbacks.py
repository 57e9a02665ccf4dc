"""The config sections of callbacks and loggers. Composer treats loggers as callbacks too."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data.base.paths import fill_placeholders
from data.config.sections import Defect, Section
from data.config.values import Count, Label, Labels, PathOfRank, PathOfRun, PositiveDuration
from train.config.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class LRMonitorConfig(Section):
    """Logs the learning rate of each parameter group."""


@dataclass(frozen=True, kw_only=True)
class SpeedMonitorConfig(Section):
    """Sets the number of batches over which throughput is averaged, and logs the metrics of Composer's SpeedMonitor.
    Throughput is logged even without this callback."""

    window_size: Count = 100
    """Number of batches over which throughput is averaged. Until the run has completed this many batches, all batches
    since the warm-up are averaged."""


@dataclass(frozen=True, kw_only=True)
class MemoryMonitorConfig(Section):
    """Logs the memory usage of the accelerator."""


@dataclass(frozen=True, kw_only=True)
class RuntimeEstimatorConfig(Section):
    """Logs the remaining time under Composer's name, `time/remaining_estimate`, in hours. The metric
    `time/remaining_seconds` is logged even without this callback."""


@dataclass(frozen=True, kw_only=True)
class HFCheckpointerConfig(Section):
    """Exports checkpoints to Hugging Face folders during the run."""

    save_folder: PathOfRun
    """Exports are written to the subfolders `huggingface/baN` of this folder, where N is the batch. `{run_name}` is
    replaced by the name of the run."""
    save_interval: PositiveDuration
    """Interval between exports; must be a multiple of the run's `save_interval`. The last checkpoint is always
    exported."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the exported weights."""


def _prompts(generate: "GenerateConfig") -> Iterator[Defect]:
    if not generate.prompts:
        yield Defect("prompts", "is [], but at least 1 prompt is required")
    for number, prompt in enumerate(generate.prompts):
        if not prompt:
            yield Defect(f"prompts[{number}]", "is '', but a prompt must have at least 1 character")


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Sampling):
    """Generates text from fixed prompts during the run."""

    RULES = (*Sampling.RULES, _prompts)

    prompts: list[str]
    """The prompts. The same prompts are used each time."""
    interval: PositiveDuration = "1ep"
    """Interval between generations. Text is also generated at the end of the run."""
    chat: bool = False
    """Format each prompt as a user message with the chat template."""
    max_new_tokens: Count = 64
    """Maximum number of tokens generated after a prompt."""


@dataclass(frozen=True, kw_only=True)
class CallbacksConfig(Section):
    """Optional actions during training."""

    generate: GenerateConfig | None = None
    hf_checkpointer: HFCheckpointerConfig | None = None
    lr_monitor: LRMonitorConfig | None = None
    speed_monitor: SpeedMonitorConfig | None = None
    memory_monitor: MemoryMonitorConfig | None = None
    runtime_estimator: RuntimeEstimatorConfig | None = None


@dataclass(frozen=True, kw_only=True)
class FileLoggerConfig(Section):
    """Writes a log file for each rank."""

    filename: PathOfRank = "{run_name}/logs-rank{rank}.txt"
    """Path of the file with the console output. `{run_name}` and `{rank}` are replaced by the name of the run and the
    number of the rank."""


@dataclass(frozen=True, kw_only=True)
class TensorboardLoggerConfig(Section):
    """TensorBoard event files, written by rank 0."""

    log_dir: PathOfRun | None = None
    """Folder of the event files. `{run_name}` is replaced by the name of the run. Without `{run_name}`, the files are
    written to a subfolder with the name of the run. `null` uses the folder `tensorboard_logs`."""

    def folder(self, run_name: str) -> Path:
        """The folder of a run's event files."""
        log_dir = self.log_dir or "tensorboard_logs"
        filled = Path(fill_placeholders(log_dir, {"run_name": run_name}))
        return filled if "{run_name}" in log_dir else filled / run_name


@dataclass(frozen=True, kw_only=True)
class WandBLoggerConfig(Section):
    """Logs to Weights & Biases, from rank 0."""

    project: Label | None = None
    """The project that the run belongs to."""
    entity: Label | None = None
    """The user or team that the project belongs to."""
    group: Label | None = None
    """The group that the run belongs to."""
    name: Label | None = None
    """Name of the run in Weights & Biases; `null` uses `run_name`."""
    tags: Labels = field(default_factory=list)
    """Labels of the run."""


@dataclass(frozen=True, kw_only=True)
class MLflowLoggerConfig(Section):
    """Logs to MLflow, from rank 0. Requires the extra `mlflow`."""

    tracking_uri: Label | None = None
    """A folder, `file:PATH`, or the address `http://HOST:PORT` of a server. `null` uses `$MLFLOW_TRACKING_URI`. If this
    variable is not set, `null` uses the folder `mlruns`."""
    experiment_name: Label | None = None
    """Name of the experiment. `null` uses `$MLFLOW_EXPERIMENT_NAME`. If this variable is not set, `null` uses MLflow's
    default experiment."""
    run_name: Label | None = None
    """Name of the run in MLflow; `null` uses the top-level `run_name`."""
    tags: dict[str, str] = field(default_factory=dict)
    """Labels of the run."""


@dataclass(frozen=True, kw_only=True)
class LoggersConfig(Section):
    """Where metrics are logged."""

    file: FileLoggerConfig | None = None
    tensorboard: TensorboardLoggerConfig | None = None
    wandb: WandBLoggerConfig | None = None
    mlflow: MLflowLoggerConfig | None = None
