"""Builds the callbacks of this package from the config."""

from pathlib import Path

import torch

from data.base.errors import ConfigError
from data.config.sections import raise_defects
from train.config.callbacks import SpeedMonitorConfig
from train.config.schema import TrainConfig
from train.models.flops import flops_per_token
from train.planning.cluster.gpus import known_gpu
from train.throughput.monitor import Throughput
from train.throughput.profile import Profile


def build_throughput(config: TrainConfig, *, gpu: bool, precision: str) -> Throughput:
    """Build the Throughput callback. precision: the compute precision of the run."""
    known = known_gpu(torch.cuda.get_device_name()) if gpu else None
    window = config.callbacks.speed_monitor or SpeedMonitorConfig()
    return Throughput(
        config.callbacks,
        window_size=window.window_size,
        rows_per_batch=config.global_train_batch_size,
        flops_per_token=flops_per_token(config.model, config.max_seq_len, config.lora),
        device_flops=known.peak_flops(precision) if known is not None else None,
    )


def build_profile(config: TrainConfig, folder: Path | None, max_batches: int) -> list[Profile]:
    """Build the Profile callback if it is configured. folder: the folder for logs. Raises ConfigError if `folder` is
    None, or if the steps to profile are after the end of the run."""
    if config.profile is None:
        return []
    raise_defects(config.profile.past_the_end(max_batches))
    if folder is None:
        raise ConfigError("is given, but there is no folder for the profile: set log_folder", key="profile")
    return [Profile(config.profile, folder / "profile")]
