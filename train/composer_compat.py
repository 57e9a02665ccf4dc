"""Patches of Composer 0.32.1. Each says what it is for and has a probe: a Composer without the need is left as it is.

Subclasses and callbacks that only use what Composer offers stand beside their subject, even where Composer's own do
something else than is wanted: train/callbacks (CheckpointSaver, LearningRate) and train/run/loggers.py.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from composer import Trainer
from composer.callbacks import CheckpointSaver
from composer.core import Timestamp
from composer.distributed import fsdp2, prepare_distributed
from composer.utils import checkpoint, dist, reproducibility
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


def restore_random_state(trainer: Trainer) -> bool:
    """At the start of a run's first batch: loads a checkpoint's random state; returns whether Composer had not.

    Composer does so at an epoch's start, or before the last of the batches that it skips. A dataset that resumes by
    itself has none skipped.
    """
    needed = holds_random_state(trainer)
    if needed:
        assert trainer._rng_state is not None
        reproducibility.load_rng_state(trainer._rng_state)
        trainer._rng_state = None
    return needed


def holds_random_state(trainer: Trainer) -> bool:
    """Whether what was loaded still waits for being restored."""
    return trainer._rng_state is not None


def remember_checkpoints(saver: CheckpointSaver, present: Sequence[Path]) -> bool:
    """Names the checkpoints of a run's earlier starts to its saver; returns whether it did not know them.

    Composer's num_checkpoints_to_keep otherwise counts, and deletes, those of this start alone.
    """
    needed = forgets_checkpoints()
    if needed:
        saver.saved_checkpoints = [str(path / "__0_0.distcp") if path.is_dir() else str(path) for path in present]
    return needed


def forgets_checkpoints() -> bool:
    """Whether a saver that has loaded its state does not count the checkpoints that the state names."""
    saver = CheckpointSaver()
    saver.load_state_dict({"all_saved_checkpoints_to_timestamp": [("ep0-ba1-rank0.pt", Timestamp().state_dict())]})
    return not saver.saved_checkpoints


def join_ranks_after_failed_save() -> bool:
    """For a rank whose save has failed: goes where the other ranks wait; returns whether they do.

    Composer's save_checkpoint ends with a barrier, which the ranks that write nothing (under HSDP, or for one file of
    all) reach also when writing has failed on the others.
    """
    needed = saving_ends_with_barrier()
    if needed:
        dist.barrier()
    return needed


def saving_ends_with_barrier() -> bool:
    """From its source: running it takes a run."""
    save = getattr(checkpoint, "_save_checkpoint", checkpoint.save_checkpoint)
    return "dist.barrier()" in inspect.getsource(save)
