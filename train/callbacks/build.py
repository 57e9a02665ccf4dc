"""Composer's own callbacks, from their config."""

from composer.callbacks import LRMonitor, MemoryMonitor, RuntimeEstimator, SpeedMonitor
from composer.core import Callback

from train.config.callbacks import CallbacksConfig


def build_callbacks(config: CallbacksConfig) -> list[Callback]:
    callbacks: list[Callback] = []
    if config.lr_monitor is not None:
        callbacks.append(LRMonitor())
    if config.speed_monitor is not None:
        callbacks.append(SpeedMonitor(window_size=config.speed_monitor.window_size))
    if config.memory_monitor is not None:
        callbacks.append(MemoryMonitor())
    if config.runtime_estimator is not None:
        callbacks.append(RuntimeEstimator())
    return callbacks
