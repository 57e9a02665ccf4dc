"""Composer's own callbacks, from their config."""

from composer.callbacks import LRMonitor, MemoryMonitor
from composer.core import Callback

from train.config.callbacks import CallbacksConfig


def build_callbacks(config: CallbacksConfig) -> list[Callback]:
    """Build them. train/throughput builds speed_monitor and runtime_estimator."""
    callbacks: list[Callback] = []
    if config.lr_monitor is not None:
        callbacks.append(LRMonitor())
    if config.memory_monitor is not None:
        callbacks.append(MemoryMonitor())
    return callbacks
