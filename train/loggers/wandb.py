"""Logs metrics to a Weights & Biases run."""

import os
from collections.abc import Mapping
from typing import Any

import wandb

from data.base.errors import ConfigError
from data.secrets.redaction import without_secrets
from train.config.redaction import masked
from train.config.schema import TrainConfig
from train.loggers.checks import is_offline
from train.loggers.service import ServiceLogger


class WandB(ServiceLogger):
    """Logs to a single W&B run, even if the training run is resumed. The batch is the x axis of all charts.

    wandb drops metrics whose step is smaller than an earlier step, which happens when a run resumes from a checkpoint.
    Therefore this class lets wandb number the steps, and logs the batch as a metric.
    """

    key = "loggers.wandb"

    def __init__(self, config: TrainConfig, *, name: str, run_id: str) -> None:
        """Start or continue the W&B run. Raises ConfigError if wandb cannot start it."""
        super().__init__()
        settings = config.loggers.wandb
        assert settings is not None
        try:
            self._run = wandb.init(
                project=_sent(settings.project),
                entity=_sent(settings.entity),
                group=_sent(settings.group),
                name=_sent(settings.name or name),
                tags=[without_secrets(tag).text for tag in settings.tags] or None,
                id=os.environ.get("WANDB_RUN_ID") or run_id or None,
                resume=None if is_offline() else "allow",
            )
        except wandb.Error as error:
            text = f"is given, but wandb cannot start a run ({error}): set WANDB_MODE=offline to log on this machine"
            raise ConfigError(text, key=self.key) from None
        self._run.config.update(masked(config), allow_val_change=True)
        self._run.define_metric("batch")
        self._run.define_metric("*", step_metric="batch")

    def send(self, batch: int, metrics: Mapping[str, float]) -> None:
        self._run.log({**metrics, "batch": batch})

    def send_table(self, batch: int, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        self._run.log({name: wandb.Table(columns=[*columns], data=[*rows]), "batch": batch})

    def end(self, *, complete: bool) -> None:
        # When the interpreter exits, wandb may have already ended the run.
        if wandb.run is self._run:
            self._run.finish(exit_code=0 if complete else 1)


def _sent(value: str | None) -> str | None:
    """Return the value without secrets. The saved config also contains no secrets, so that a run that is started from
    the saved config sends the same value."""
    return None if value is None else without_secrets(value).text
