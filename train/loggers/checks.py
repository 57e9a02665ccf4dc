"""Checks that the loggers can start, before a run does anything expensive. This module does not import Composer."""

import importlib.util
import os

from data.base.errors import ConfigError
from train.config.callbacks import LoggersConfig


def check_loggers(config: LoggersConfig) -> None:
    """Check the loggers. Call this only on the rank that runs the loggers. Raises ConfigError."""
    if config.mlflow is not None and importlib.util.find_spec("mlflow") is None:
        raise ConfigError(
            "is given, but MLflow is not installed: pip install -e '.[mlflow]'",
            key="loggers.mlflow",
        )
    if config.wandb is not None and not is_offline() and not _has_api_key():
        raise ConfigError(
            "is given, but wandb has no API key: run `wandb login`, set WANDB_API_KEY, or set "
            "WANDB_MODE=offline to keep the log on this machine",
            key="loggers.wandb",
        )


def is_offline() -> bool:
    """Whether uploads by wandb are disabled."""
    return os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun")


def _has_api_key() -> bool:
    import wandb

    return wandb.api.api_key is not None
