"""Composer's own callbacks, from their config."""

from composer.callbacks import LRMonitor, MemoryMonitor
from composer.core import Callback

from train.config.callbacks import CallbacksConfig


def build_callbacks(config: CallbacksConfig) -> list[Callback]:
    """speed_monitor and runtime_estimator are of train/throughput."""
    callbacks: list[Callback] = []
    if config.lr_monitor is not None:
        callbacks.append(LRMonitor())
    if config.memory_monitor is not None:
        callbacks.append(MemoryMonitor())
    return callbacks
