"""The learning rate of each batch that Composer trains matches transformers' schedules."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
import yaml
from composer import Trainer
from composer.callbacks import LRMonitor
from composer.core import State
from composer.loggers import Logger, LoggerDestination
from composer.models import ComposerModel
from torch.utils.data import DataLoader

from data.base.durations import Clock
from tests.helpers.ranks import run_ranks
from train.callbacks.learning_rate import LearningRate
from train.config.optimizer import SchedulerConfig
from train.optim.schedules import build_scheduler

LR, BATCHES, WARMUP, DECAY = 3e-3, 30, 5, 6


class Rates(LoggerDestination):
    """Return the learning rate that each batch was trained with, and the logged one."""

    def __init__(self) -> None:
        self.used: list[float] = []
        self.logged: list[float] = []

    def fit_start(self, state: State, logger: Logger) -> None:
        logger.destinations = (*logger.destinations, self)

    def before_train_batch(self, state: State, logger: Logger) -> None:
        self.used.append(state.optimizers[0].param_groups[0]["lr"])

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.logged += [value for key, value in metrics.items() if key == "lr-AdamW/group0"]


SCHEDULES: dict[str, tuple[str, Callable[[torch.optim.Optimizer], Any]]] = {
    "cosine": (
        "{name: cosine_with_warmup, t_warmup: 5ba}",
        lambda optimizer: transformers.get_cosine_schedule_with_warmup(optimizer, WARMUP, BATCHES),
    ),
    "cosine to a tenth": (
        "{name: cosine_with_warmup, t_warmup: 5ba, alpha_f: 0.1}",
        lambda optimizer: transformers.get_scheduler(
            "cosine_with_min_lr", optimizer, WARMUP, BATCHES, {"min_lr_rate": 0.1}
        ),
    ),
    "linear": (
        "{name: linear_decay_with_warmup, t_warmup: 5ba}",
        lambda optimizer: transformers.get_linear_schedule_with_warmup(optimizer, WARMUP, BATCHES),
    ),
    "constant": (
        "{name: constant_with_warmup, t_warmup: 5ba}",
        lambda optimizer: transformers.get_constant_schedule_with_warmup(optimizer, WARMUP),
    ),
    "no warmup": (
        "{name: linear_decay_with_warmup}",
        lambda optimizer: transformers.get_linear_schedule_with_warmup(optimizer, 0, BATCHES),
    ),
    "inverse square root": (
        "{name: inv_sqrt_with_warmup, t_warmup: 5ba}",
        lambda optimizer: transformers.get_inverse_sqrt_schedule(optimizer, WARMUP),
    ),
    "warmup, stable, decay": (
        # Without alpha_f, because with min_lr_ratio the warmup of transformers starts there instead of at 0.
        "{name: wsd_with_warmup, t_warmup: 5ba, t_decay: 6ba}",
        lambda optimizer: transformers.get_wsd_schedule(
            optimizer, WARMUP, DECAY, num_training_steps=BATCHES, decay_type="linear"
        ),
    ),
}
"""Return our schedule and transformers' schedule with the same definition."""


class Model(ComposerModel):
    """Return an optimizer with one weight, so that a step takes no time."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.weight * batch

    def loss(self, outputs: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        return outputs.mean()


def train(schedule: str) -> Rates:
    clock = Clock(tokens_per_batch=1, rows_per_batch=1, rows_per_epoch=BATCHES, max_batches=BATCHES)
    model, rates = Model(), Rates()
    optimizer = torch.optim.AdamW([{"params": model.parameters(), "initial_lr": LR}], lr=LR)
    scheduler = build_scheduler(SchedulerConfig(**yaml.safe_load(schedule)), clock)
    plan: Any = SimpleNamespace(lr_scale=lambda batch: 1.0)
    Trainer(
        model=model,
        train_dataloader=DataLoader(torch.ones(BATCHES + 1, 1)),  # type: ignore[arg-type]
        max_duration=f"{BATCHES}ba",
        optimizers=optimizer,
        callbacks=[LearningRate(scheduler, plan), LRMonitor(), rates],
        progress_bar=False,
    ).fit()
    return rates


def rates() -> dict[str, tuple[list[float], list[float]]]:
    return {name: (watch.used, watch.logged) for name, (ours, _) in SCHEDULES.items() if (watch := train(ours))}


def expected(make: Callable[[torch.optim.Optimizer], Any]) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    schedule, found = make(optimizer), []
    for _ in range(BATCHES):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.ranks
def test_each_batch_has_the_learning_rate_of_transformers_schedule() -> None:
    (found,) = run_ranks(rates, 1)
    for name, (_, theirs) in SCHEDULES.items():
        used, logged = found[name]
        assert used == pytest.approx(expected(theirs), rel=1e-12, abs=0), name
        assert logged == used, name
        assert sum(rate == 0 for rate in used) == (name != "no warmup"), name
