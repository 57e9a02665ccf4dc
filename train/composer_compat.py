"""Patches of Composer 0.32.1. Each patch states its purpose and has a probe, so that Composer versions that do not need
the patch are left unchanged.

Subclasses and callbacks that use only Composer's public features are in train/callbacks (CheckpointSaver, RestoreRNG,
LearningRate) and train/loggers, even if they replace a class of Composer.
"""

import inspect
from typing import Any

import torch
from composer.distributed import fsdp2, prepare_distributed
from torch.distributed.fsdp import FSDPModule


def leave_sharded_models() -> bool:
    """Make a Trainer with FSDP2 accept a model that is already sharded. Returns whether Composer had to be patched.

    Composer's own sharding does not support HSDP, or the meta device on a CPU (composer/distributed/param_init.py
    always requests cuda). It also fails if fully_shard was already applied to the model.
    """
    needed = shards_again()
    if needed:
        prepare_distributed.parallelize_composer_model = _keep_sharding
    return needed


def shards_again() -> bool:
    """Whether Composer applies fully_shard without checking whether the model is already sharded. This function
    searches Composer's source code, because running that code requires several ranks and a device."""
    return not any("FSDPModule" in inspect.getsource(module) for module in (prepare_distributed, fsdp2))


def _keep_sharding(model: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
    assert any(isinstance(module, FSDPModule) for module in model.modules())
