"""Callbacks and loggers (to Composer a logger is a callback too), as a YAML has them."""

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
    """The window of throughput, which is always logged; and also what Composer's SpeedMonitor calls otherwise."""

    window_size: Count = 100
    """Batches over which throughput is averaged. Before there are so many: over those since the warm-up."""


@dataclass(frozen=True, kw_only=True)
class MemoryMonitorConfig(Section):
    """Logs the memory of the accelerator."""


@dataclass(frozen=True, kw_only=True)
class RuntimeEstimatorConfig(Section):
    """Logs the time that is left as Composer does, time/remaining_estimate in hours, beside time/remaining_seconds."""


@dataclass(frozen=True, kw_only=True)
class HFCheckpointerConfig(Section):
    """Exports checkpoints to Hugging Face folders during the run."""

    save_folder: PathOfRun
    """Exports go to huggingface/baN in it; {run_name} is filled in."""
    save_interval: PositiveDuration
    """Of the checkpoints those at this interval, and the last, are exported; a multiple of the run's save_interval."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """In what the weights are written."""


def _prompts(generate: "GenerateConfig") -> Iterator[Defect]:
    if not generate.prompts:
        yield Defect("prompts", "is [], but at least 1 is needed")
    for number, prompt in enumerate(generate.prompts):
        if not prompt:
            yield Defect(f"prompts[{number}]", "is '', but a prompt needs at least 1 character")


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Sampling):
    """Shows what the model writes, during the run."""

    RULES = (*Sampling.RULES, _prompts)

    prompts: list[str]
    """What the model continues, the same each time."""
    interval: PositiveDuration = "1ep"
    """Also at the end of the run."""
    chat: bool = False
    """Each prompt is what a user says, in the chat template."""
    max_new_tokens: Count = 64
    """The most tokens that are generated after a prompt."""


@dataclass(frozen=True, kw_only=True)
class CallbacksConfig(Section):
    """What is done during the run besides training."""

    generate: GenerateConfig | None = None
    hf_checkpointer: HFCheckpointerConfig | None = None
    lr_monitor: LRMonitorConfig | None = None
    speed_monitor: SpeedMonitorConfig | None = None
    memory_monitor: MemoryMonitorConfig | None = None
    runtime_estimator: RuntimeEstimatorConfig | None = None


@dataclass(frozen=True, kw_only=True)
class FileLoggerConfig(Section):
    """A log file for each rank."""

    filename: PathOfRank = "{run_name}/logs-rank{rank}.txt"
    """What the console shows, in a file; {run_name} and {rank} are filled in."""


@dataclass(frozen=True, kw_only=True)
class TensorboardLoggerConfig(Section):
    """TensorBoard event files, of rank 0."""

    log_dir: PathOfRun | None = None
    """Where event files go; {run_name} is filled in. Without it they go to a folder of the run's name below log_dir;
    null takes tensorboard_logs."""

    def folder(self, run_name: str) -> Path:
        """That of a run."""
        log_dir = self.log_dir or "tensorboard_logs"
        filled = Path(fill_placeholders(log_dir, {"run_name": run_name}))
        return filled if "{run_name}" in log_dir else filled / run_name


@dataclass(frozen=True, kw_only=True)
class WandBLoggerConfig(Section):
    """A Weights & Biases run, of rank 0."""

    project: Label | None = None
    """The project that the run belongs to."""
    entity: Label | None = None
    """The user or team."""
    group: Label | None = None
    """The group of runs."""
    name: Label | None = None
    """null takes run_name."""
    tags: Labels = field(default_factory=list)
    """Labels of the run."""


@dataclass(frozen=True, kw_only=True)
class MLflowLoggerConfig(Section):
    """An MLflow run, of rank 0. Needs the extra `mlflow`."""

    tracking_uri: Label | None = None
    """A folder, file:PATH, or http://HOST:PORT of a server; null takes $MLFLOW_TRACKING_URI, and without it the folder
    mlruns."""
    experiment_name: Label | None = None
    """null takes $MLFLOW_EXPERIMENT_NAME, and without it MLflow's own Default."""
    run_name: Label | None = None
    """null takes the run's run_name."""
    tags: dict[str, str] = field(default_factory=dict)
    """Labels of the run."""


@dataclass(frozen=True, kw_only=True)
class LoggersConfig(Section):
    """Where metrics go."""

    file: FileLoggerConfig | None = None
    tensorboard: TensorboardLoggerConfig | None = None
    wandb: WandBLoggerConfig | None = None
    mlflow: MLflowLoggerConfig | None = None
