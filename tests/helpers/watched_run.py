"""A run whose losses, learning rates and weights are recorded."""

import os
import signal
from typing import Any

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from torch.distributed.tensor import DTensor

from tests.helpers.saving import wait_until_saved
from train.config.load import read_config
from train.run.fit import fit


class Watch(Callback):
    """Records the loss of every batch and the weights at the end, and can end the process after a batch as in a power
    failure."""

    def __init__(self, kill_after: int | None) -> None:
        self.kill_after = kill_after
        self.rates: dict[int, float] = {}
        self.losses: dict[int, float] = {}
        self.eval_losses: dict[int, float] = {}
        self.weights: dict[str, torch.Tensor] = {}

    def batch_end(self, state: State, logger: Logger) -> None:
        self.rates[state.timestamp.batch.value] = state.optimizers[0].param_groups[0]["lr"]
        self.losses[state.timestamp.batch.value] = state.total_loss_dict["loss/train/total"]

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        # The saver runs after the other callbacks, so this is the batch after the saved one.
        if state.timestamp.batch.value == self.kill_after:
            wait_until_saved(state)
            os.kill(os.getpid(), signal.SIGKILL)

    def eval_end(self, state: State, logger: Logger) -> None:
        self.eval_losses[state.timestamp.batch.value] = float(state.eval_metric_values["LanguageCrossEntropy"])

    def fit_end(self, state: State, logger: Logger) -> None:
        for name, param in state.model.named_parameters():
            whole = param.full_tensor() if isinstance(param, DTensor) else param
            self.weights[name] = whole.detach().clone()


def run(path: str, overrides: list[str], kill_after: int | None = None) -> dict[str, Any]:
    watch = Watch(kill_after)
    fit(read_config(path, overrides), callbacks=[watch])
    return {"rates": watch.rates, "losses": watch.losses, "eval": watch.eval_losses, "weights": watch.weights}
