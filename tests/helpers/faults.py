"""Faults in a run's loss, in its gradients, and in the loads of its experts."""

import json
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch.distributed.tensor import DTensor

from tests.helpers.watched_run import Watch
from train.config.load import read_config
from train.run.fit import fit
from train.supervision.exit_codes import RunStopped
from train.supervision.record_file import RECORD


class Fault(Callback):
    """Multiplies the loss of some batches, or writes a value into a gradient, on some ranks. It runs before the
    callbacks that read these values, so for them the fault is a result of the run."""

    def __init__(
        self,
        batches: Collection[int],
        *,
        loss: float | None = None,
        gradient: float | None = None,
        drop: bool = False,
        ranks: Collection[int] = (0, 1),
    ) -> None:
        self.batches, self.loss, self.gradient, self.drop = batches, loss, gradient, drop
        self.hit = dist.get_global_rank() in ranks

    def _is_due(self, state: State) -> bool:
        return self.hit and state.timestamp.batch.value in self.batches

    def after_loss(self, state: State, logger: Logger) -> None:
        if self.loss is not None and self._is_due(state):
            assert isinstance(state.loss, dict)
            state.loss["total"] = state.loss["total"] * self.loss

    def after_train_batch(self, state: State, logger: Logger) -> None:
        if not self._is_due(state):
            return
        params = [param for param in state.model.parameters() if param.grad is not None]
        if self.gradient is not None:
            grad = params[3].grad
            assert grad is not None
            (grad.to_local() if isinstance(grad, DTensor) else grad).view(-1)[0] = self.gradient
        for param in params if self.drop else ():
            param.grad = None


class Killed(Exception):
    """End a run so that its save folder is in the same state as after a kill."""


class Kill(Callback):
    def __init__(self, batch: int) -> None:
        self.batch = batch

    def batch_start(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value == self.batch:
            raise Killed


@dataclass
class Ended:
    """A run and how it ended."""

    losses: dict[int, float]
    weights: dict[str, torch.Tensor]
    stopped: str | None = None
    code: int | None = None
    events: list[dict[str, Any]] = field(default_factory=list)

    def kinds(self) -> list[tuple[int, str]]:
        return [(event["batch"], event["event"]) for event in self.events]


def run_with(path: str, overrides: list[str], *faults: Callback) -> Ended:
    """Run the config with these faults. The events of the result are read from record.jsonl."""
    watch, config = Watch(None), read_config(path, overrides)
    ended = Ended(watch.losses, watch.weights)
    try:
        fit(config, callbacks=[*faults, watch])
    except Killed:
        pass
    except RunStopped as stop:
        ended.stopped, ended.code = str(stop), int(stop.code)
    dist.barrier()
    if config.save_folder is not None:
        record = Path(config.save_folder.format(run_name=config.run_name)) / RECORD
        lines = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
        ended.events = [line for line in lines if line.get("event") not in (None, "start", "saved", "end")]
    return ended


def is_finite(weights: dict[str, torch.Tensor]) -> bool:
    return all(math.isfinite(weight.abs().sum().item()) for weight in weights.values())
