"""Performs a run up to its first step: ranks connect, the model is built on the meta device, and the plan and the first
batch are shown."""

import sys

import torch
from composer.utils import dist, get_device
from rich.console import Console
from torch.distributed.tensor import DTensor

from data.base.console import logger
from train.callbacks.build import build_callbacks
from train.callbacks.generate import build_generate
from train.callbacks.hf_checkpointer import build_hf_checkpointer
from train.checkpoint.save_folder import local_folder
from train.config.schema import TrainConfig
from train.console.facts import fact_of
from train.distributed.build_model import meta_model
from train.dry_run.first_batch import read_first_batch, texts_of
from train.dry_run.plan import check_room, plan_of, show
from train.hardware.device import Device, choose_device
from train.hardware.kernels import choose_kernels
from train.models.precision import computed, on_device
from train.optim.schedules import build_scheduler
from train.run.fit import initialize
from train.run.inputs import Inputs
from train.run.model import check_lora

_WIDTH = 160
"""Width of tables that are written to a file."""


def dry_run(config: TrainConfig, inputs: Inputs, *, device: Device | None) -> None:
    """Show what the run would do at its start. inputs: the result of `opened`. device: the result of choose_device, or
    None. Every rank must call this within sharing_failures.

    Raises the ConfigError or DataError that the run would raise before its first step, with two exceptions: errors in
    the tensors of a checkpoint, because the tensors are not read, and errors in taking ownership of the save folder,
    because the folder is not changed.
    """
    device = device or choose_device(config.device)
    inputs = initialize(inputs, config, get_device(device))
    world_size = dist.get_world_size()
    if inputs.at_the_end:
        logger.info(f"nothing to do: max_duration {config.max_duration} is {inputs.max_batches} batches")
    else:
        check_room(config, inputs, world_size)
        _build(config, inputs, device)
        batch = read_first_batch(config, inputs)
        if dist.get_global_rank() == 0:
            console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
            show(console, [*plan_of(config, inputs, world_size), str(batch)])
            for text in texts_of(batch, inputs, marks=console.color_system is None):
                console.print(text, soft_wrap=True)
    logger.info("dry run: nothing was trained, and nothing was written to the save folder")


def _build(config: TrainConfig, inputs: Inputs, device: Device) -> None:
    """Build everything that depends on the config and the data, so that all errors are raised. The built objects are
    discarded."""
    clock, where = inputs.data.clock, torch.device("cuda" if device == "gpu" else "cpu")
    build_scheduler(config.scheduler, clock)
    build_callbacks(config.callbacks)
    build_generate(config, inputs.tokenizer, clock)
    folder = local_folder(config, inputs.run_name)
    build_hf_checkpointer(config, clock, inputs.run_name, folder, resuming=inputs.resuming)
    precision = on_device(config.precision, gpu=device == "gpu")
    dtype = torch.bfloat16 if computed(precision) == "bf16" else torch.float32
    model_config, lines = choose_kernels(config, dist.get_world_size(), where, dtype)
    for line in lines:
        logger.info(fact_of(line))
    check_lora(config, where, model_config.ffn_config.moe_impl)
    model = meta_model(model_config, config.fsdp_config, precision=precision, device=where, lora=config.lora)
    params = list(model.parameters())
    mine = sum((param.to_local() if isinstance(param, DTensor) else param).numel() for param in params)
    logger.info(
        f"model: built on the meta device, {sum(param.numel() for param in params):,} elements in {len(params)} "
        f"parameters, {mine:,} of the elements on rank {dist.get_global_rank()}"
    )
