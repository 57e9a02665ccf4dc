"""Composer's Trainer for a run, and what is set right around its loading of a checkpoint."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from composer import Trainer
from composer.algorithms import GradientClipping
from composer.core import Algorithm, Callback, DataSpec, Evaluator
from composer.devices import Device
from composer.utils import dist
from composer.utils.parallelism import FSDP2Config
from torch.distributed.checkpoint.api import CheckpointException
from torch.utils.data import DataLoader

from data.base.console import logger
from data.base.durations import Clock
from data.base.errors import ConfigError
from data.mixing.row_plan import RowPlan
from train.callbacks.build import build_callbacks
from train.callbacks.checkpoint_saver import CheckpointSaver
from train.callbacks.global_batch import GlobalBatch
from train.callbacks.learning_rate import LearningRate
from train.callbacks.restore_rng import RestoreRNG
from train.checkpoint.optimizer import as_one_group, changed_settings, read_groups
from train.checkpoint.reader import CheckpointReader
from train.checkpoint.save_folder import batch_of, checkpoints, first_failure
from train.composer_compat import leave_sharded_models, remember_checkpoints
from train.composer_model import DbrxForComposer
from train.config.optimizer import AlgorithmsConfig
from train.config.ranks import train_microbatch_rows
from train.config.schema import TrainConfig
from train.hardware.allocator import keep_freed_memory
from train.models.recompute import named_parameters
from train.optim.optimizers import build_optimizer
from train.optim.schedules import build_scheduler
from train.run.loggers import build_loggers
from train.weights.start import Start


def build_trainer(
    config: TrainConfig,
    *,
    model: DbrxForComposer,
    device: Device,
    train_loader: DataLoader,
    eval_loader: DataLoader | None,
    clock: Clock,
    plan: RowPlan,
    callbacks: Sequence[Callback] = (),
    after_saving: Sequence[Callback] = (),
    run_name: str,
    precision: str,
    save_folder: str | None,
    start: Start | None,
) -> Trainer:
    """Composer's Trainer for the run. Every duration it is told is in batches (see durations.Clock).

    after_saving: callbacks that want a batch's checkpoint on disk when it has been trained.
    """
    if device.name == "cpu":
        keep_freed_memory()
    restore_rng = RestoreRNG()
    learning_rate = LearningRate(build_scheduler(config.scheduler, clock), plan)
    # The random state first: what GlobalBatch counts, and every forward after it, draws from it.
    first = [restore_rng, learning_rate, GlobalBatch(config.model)]
    parallelism = None
    if config.fsdp_config is not None:
        # Tells Composer how to save and load; the model itself is sharded already, by train/distributed/build_model.py.
        parallelism = {"fsdp": FSDP2Config(state_dict_type=config.fsdp_config.state_dict_type)}
        leave_sharded_models()
    optimizer = build_optimizer(config.optimizer, model.model)
    resuming = start is not None and start.resuming
    # What a killed run left half-written past the checkpoint that is resumed from may be written again.
    savers = _savers(config, clock, save_folder, overwrite=config.save_overwrite or resuming)
    trainer = _trainer(
        start,
        config.optimizer.name,
        model=model,
        device=device,
        run_name=run_name,
        seed=config.seed,
        train_dataloader=DataSpec(train_loader),
        eval_dataloader=_evaluator(config, model, eval_loader),
        eval_interval=f"{clock.batches(config.eval_interval)}ba",
        max_duration=f"{clock.max_batches}ba",
        optimizers=optimizer,
        algorithms=_algorithms(config.algorithms),
        callbacks=[*first, *build_callbacks(config.callbacks), *callbacks, *savers, *after_saving],
        loggers=build_loggers(config.loggers, run_name),
        progress_bar=config.progress_bar,
        # One rank tells: a launcher keeps the others' output and shows all of it when one of them fails.
        log_to_console=config.log_to_console and dist.get_global_rank() == 0,
        console_log_interval=f"{clock.batches(config.console_log_interval)}ba",
        device_train_microbatch_size=train_microbatch_rows(config, dist.get_world_size()),
        precision=precision,
        parallelism_config=parallelism,
        dist_timeout=config.dist_timeout,
        load_weights_only=start is not None and start.data_state is None,
        # Of a model with adapters checkpoints hold these alone; what is in them was compared by check_start.
        load_strict_model_weights=config.lora is None,
        load_progress_bar=False,
        load_ignore_keys=None if start is None or start.data_state is None else _without_new_callbacks(start.path),
    )
    restore_rng.trainer = trainer
    if resuming:
        for saver in savers:
            # save_num_checkpoints_to_keep counts those of the run's earlier starts too.
            batch = trainer.state.timestamp.batch.value
            remember_checkpoints(saver, [path for path in checkpoints(Path(saver.folder)) if batch_of(path) <= batch])
    return trainer


def _without_new_callbacks(checkpoint: Path) -> Callable[[dict[str, Any]], None] | None:
    """Leaves out of what is to be loaded the state of callbacks that the checkpoint was written without, such as the
    speed monitor: torch refuses a sharded checkpoint that lacks a key."""
    if not checkpoint.is_dir():
        return None
    keys = (CheckpointReader(checkpoint).metadata.planner_data or {}).values()
    present = {key[2] for key in keys if key[:2] == ("state", "callbacks")}

    def leave_out(loaded: dict[str, Any]) -> None:
        callbacks = loaded["state"]["callbacks"]
        for name in [name for name, state in callbacks.items() if state and name not in present]:
            del callbacks[name]

    return leave_out


def _algorithms(config: AlgorithmsConfig) -> list[Algorithm]:
    clipping = config.gradient_clipping
    return [] if clipping is None else [GradientClipping(clipping.clipping_type, clipping.clipping_threshold)]


def _evaluator(config: TrainConfig, model: DbrxForComposer, loader: DataLoader | None) -> Evaluator | None:
    if loader is None:
        return None
    return Evaluator(
        label="eval",
        dataloader=DataSpec(loader),
        metric_names=list(model.get_metrics(is_train=False)),
        subset_num_batches=config.eval_subset_num_batches,
        device_eval_microbatch_size=config.device_eval_batch_size,
    )


def _savers(config: TrainConfig, clock: Clock, folder: str | None, *, overwrite: bool) -> list[CheckpointSaver]:
    if folder is None:
        return []
    interval, number = f"{clock.batches(config.save_interval)}ba", config.save_num_checkpoints_to_keep
    return [CheckpointSaver(folder, interval, overwrite=overwrite, num_checkpoints_to_keep=number)]


def _trainer(
    start: Start | None,
    optimizer_name: str,
    *,
    model: DbrxForComposer,
    optimizers: torch.optim.Optimizer,
    **arguments: Any,
) -> Trainer:
    """A Trainer that has loaded the checkpoint. Its optimizer keeps the settings of this run's config."""
    path = str(start.path) if start is not None else None
    saved = None
    if start is not None and start.data_state is not None:
        saved = read_groups(start.path, type(optimizers).__qualname__)
    try:
        with as_one_group(optimizers, saved) if saved is not None else nullcontext():
            trainer = Trainer(model=model, optimizers=optimizers, load_path=path, **arguments)
    except CheckpointException as error:  # not an Exception, and so past everything that would show it as a line
        raise ConfigError(
            f"{path} cannot be loaded into this run ({first_failure(error).rstrip('. ')}): it was written with another "
            "optimizer.freeze, or by other code; put it back, or start another run from the weights, with another "
            "run_name, load_path and load_weights_only=true"
        ) from None
    if saved is not None:
        names = {param: name for name, param in named_parameters(model.model)}
        if changed := changed_settings(optimizer_name, saved, optimizers.param_groups, names):
            logger.info(f"optimizer settings changed since the checkpoint: {'; '.join(changed)}")
    return trainer
