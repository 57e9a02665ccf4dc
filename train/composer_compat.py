"""Patches of Composer 0.32.1. Each says what it is for and has a probe: a Composer without the need is left as it is.

Subclasses and callbacks that only use what Composer offers stand beside their subject, even where Composer's own do
something else than is wanted: train/callbacks (CheckpointSaver, RestoreRNG, LearningRate) and train/loggers.
"""

import inspect
from typing import Any

import torch
from composer.distributed import fsdp2, prepare_distributed
from torch.distributed.fsdp import FSDPModule


def leave_sharded_models() -> bool:
    """Lets a Trainer with FSDP2 take a model that is sharded already; returns whether Composer had to be patched.

    Composer's own sharding knows neither meta on CPU (composer/distributed/param_init.py always asks for cuda) nor
    HSDP, and fails on a model to which fully_shard has been applied.
    """
    needed = shards_again()
    if needed:
        prepare_distributed.parallelize_composer_model = _leave_as_sharded
    return needed


def shards_again() -> bool:
    """Whether Composer applies fully_shard without looking whether a model has it. From its source: running it takes
    ranks and a device."""
    return not any("FSDPModule" in inspect.getsource(module) for module in (prepare_distributed, fsdp2))


def _leave_as_sharded(model: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
    assert any(isinstance(module, FSDPModule) for module in model.modules())
