"""Builds the loggers of a config. Every rank has a log file, and rank 0 has all other loggers."""

from dataclasses import dataclass
from pathlib import Path

from composer.loggers import LoggerDestination

from data.base.errors import os_errors_named
from train.config.schema import TrainConfig
from train.distributed.first_rank import on_first_rank
from train.loggers.json_lines import JsonLines
from train.loggers.log_file import LogFile, log_file
from train.loggers.tensorboard import Tensorboard


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """Properties of the run that loggers need in addition to its config."""

    name: str
    id: str = ""
    """An id that stays the same when the run is resumed. Only the value of rank 0 is used."""
    folder: Path | None = None
    """The log folder."""
    first_batch: int = 0
    """The batch at which this process starts to train."""


def build_loggers(config: TrainConfig, run: LoggedRun) -> list[LoggerDestination]:
    """Build the loggers. Every rank must call this. Raises ConfigError on every rank if a logger of rank 0 cannot be
    started."""
    loggers: list[LoggerDestination] = []
    if (file := config.loggers.file) is not None:
        loggers.append(LogFile(log_file(file.filename, run.name), log_traces=False))
    # wandb and MLflow may take a long time to connect to a server.
    on_first_rank(lambda: loggers.extend(_of_rank_0(config, run)), slow="loggers/built")
    return loggers


def _of_rank_0(config: TrainConfig, run: LoggedRun) -> list[LoggerDestination]:
    loggers: list[LoggerDestination] = []
    if run.folder is not None:
        loggers.append(JsonLines(run.folder))
    if (board := config.loggers.tensorboard) is not None:
        folder = board.folder(run.name)
        with os_errors_named(f"is {board.log_dir!r}, but {folder}", "written", key="loggers.tensorboard.log_dir"):
            loggers.append(Tensorboard(folder, config, run.first_batch))
    # These modules are imported here, because their imports are slow and MLflow may not be installed.
    if config.loggers.wandb is not None:
        from train.loggers.wandb import WandB

        loggers.append(WandB(config, name=run.name, run_id=run.id))
    if config.loggers.mlflow is not None:
        from train.loggers.mlflow import MLflow

        loggers.append(MLflow(config, name=run.name, run_id=run.id))
    return loggers
