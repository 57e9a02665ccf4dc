"""Builds learning-rate schedules from their config."""

import math

from composer.core import State
from composer.optim import (
    ComposerScheduler,
    ConstantWithWarmupScheduler,
    CosineAnnealingWithWarmupScheduler,
    LinearWithWarmupScheduler,
)

from data.base.durations import Clock
from data.base.errors import ConfigError
from train.config.optimizer import SchedulerConfig


def build_scheduler(config: SchedulerConfig, clock: Clock) -> ComposerScheduler:
    """Return a function that computes the factor by which the learning rate is multiplied in the batch of
    state.timestamp (see callbacks/learning_rate.py).

    Raises ConfigError if a duration in the config is too long for the run.
    """
    warmup = clock.batches(config.t_warmup)
    decay = clock.batches(config.t_decay)
    total = clock.max_batches
    assert total is not None
    if warmup > total:
        raise ConfigError(
            f"is {config.t_warmup} ({warmup} batches), but the run has only {total}: use a shorter warmup, or "
            f"scheduler.t_warmup={'1ba' if config.name == 'inv_sqrt_with_warmup' else '0ba'} for a short test",
            key="scheduler.t_warmup",
        )
    if config.name == "wsd_with_warmup" and warmup + decay > total:
        raise ConfigError(
            f"is {config.t_decay} ({decay} batches), but after a warmup of {warmup} batches, only "
            f"{total - warmup} of the run's {total} batches remain: use a shorter decay, or "
            "scheduler.t_warmup=0ba scheduler.t_decay=0.1dur for a short test",
            key="scheduler.t_decay",
        )
    if config.name == "inv_sqrt_with_warmup" and warmup == 0:
        raise ConfigError(
            f"is {config.t_warmup}, but inv_sqrt_with_warmup decays relative to the warmup: use at least 1ba",
            key="scheduler.t_warmup",
        )
    return {
        "cosine_with_warmup": lambda: CosineAnnealingWithWarmupScheduler(f"{warmup}ba", alpha_f=config.alpha_f),
        "linear_decay_with_warmup": lambda: LinearWithWarmupScheduler(f"{warmup}ba", alpha_f=config.alpha_f),
        "constant_with_warmup": lambda: ConstantWithWarmupScheduler(f"{warmup}ba"),
        "inv_sqrt_with_warmup": lambda: inv_sqrt_with_warmup(warmup),
        "wsd_with_warmup": lambda: wsd_with_warmup(warmup, decay, total, config.alpha_f),
    }[config.name]()


def inv_sqrt_with_warmup(warmup: int) -> ComposerScheduler:
    """Linear warmup, then sqrt(warmup / batch) (Vaswani et al. 2017). The factor does not depend on the length of the
    run."""

    def schedule(state: State, ssr: float = 1.0) -> float:
        batch = state.timestamp.batch.value
        return batch / warmup if batch < warmup else math.sqrt(warmup / batch)

    return schedule


def wsd_with_warmup(warmup: int, decay: int, total: int, alpha_f: float) -> ComposerScheduler:
    """Linear warmup, then a constant factor, then linear decay to alpha_f over the last `decay` batches (Hu et al.
    2024, MiniCPM)."""

    def schedule(state: State, ssr: float = 1.0) -> float:
        batch = state.timestamp.batch.value
        if batch < warmup:
            return batch / warmup
        left = max(total - batch, 0)
        return 1.0 if left >= decay else alpha_f + (1 - alpha_f) * left / decay

    return schedule
