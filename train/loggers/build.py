"""From config to loggers: one TensorBoard writer and one wandb run, both of rank 0, and a log file for each rank."""

import os

from composer.loggers import LoggerDestination, WandBLogger
from composer.utils import dist

from data.base.errors import ConfigError
from data.base.redaction import without_secrets
from train.config.callbacks import LoggersConfig
from train.loggers.log_file import LogFile, log_file
from train.loggers.tensorboard import Tensorboard


def build_loggers(config: LoggersConfig, run_name: str) -> list[LoggerDestination]:
    loggers: list[LoggerDestination] = []
    if config.file is not None:
        loggers.append(LogFile(log_file(config.file.filename, run_name), log_traces=False))
    if config.tensorboard is not None and dist.get_global_rank() == 0:
        loggers.append(Tensorboard(log_dir=config.tensorboard.log_dir))
    if config.wandb is not None:
        wandb = config.wandb
        _check_wandb()
        loggers.append(
            WandBLogger(
                project=_sent(wandb.project),
                entity=_sent(wandb.entity),
                group=_sent(wandb.group),
                name=_sent(wandb.name or run_name),
                tags=[without_secrets(tag).text for tag in wandb.tags] or None,
            )
        )
    return loggers


def _sent(value: str | None) -> str | None:
    """As a run that is started with the saved config sends it."""
    return None if value is None else without_secrets(value).text


def _check_wandb() -> None:
    import wandb

    if os.environ.get("WANDB_MODE") not in ("offline", "disabled", "dryrun") and wandb.api.api_key is None:
        raise ConfigError(
            "is given, but wandb has no API key: run `wandb login`, set WANDB_API_KEY, or set "
            "WANDB_MODE=offline to keep the log here",
            key="loggers.wandb",
        )
