"""Build Composer's own callbacks from the config."""

from composer.callbacks import LRMonitor, MemoryMonitor
from composer.core import Callback

from train.config.callbacks import CallbacksConfig


def build_callbacks(config: CallbacksConfig) -> list[Callback]:
    """Build the configured callbacks, except speed_monitor and runtime_estimator, which train/throughput builds."""
    callbacks: list[Callback] = []
    if config.lr_monitor is not None:
        callbacks.append(LRMonitor())
    if config.memory_monitor is not None:
        callbacks.append(MemoryMonitor())
    return callbacks
