"""The callbacks of this package, from the config."""

import torch

from train.config.callbacks import SpeedMonitorConfig
from train.config.schema import TrainConfig
from train.models.flops import flops_per_token
from train.planning.cluster.gpus import known_gpu
from train.throughput.monitor import Throughput


def build_throughput(config: TrainConfig, *, gpu: bool, precision: str) -> Throughput:
    """precision: in which the run computes."""
    known = known_gpu(torch.cuda.get_device_name()) if gpu else None
    window = config.callbacks.speed_monitor or SpeedMonitorConfig()
    return Throughput(
        config.callbacks,
        window_size=window.window_size,
        rows_per_batch=config.global_train_batch_size,
        flops_per_token=flops_per_token(config.model, config.max_seq_len, config.lora),
        device_flops=known.peak_flops(precision) if known is not None else None,
    )
