"""Composer's Trainer for a run, and its data loaders."""

from collections.abc import Sequence

import torch
from composer import Trainer
from composer.core import Callback, DataSpec, Evaluator
from composer.devices import Device
from composer.loggers import LoggerDestination
from composer.utils import dist
from composer.utils.parallelism import FSDP2Config
from torch.utils.data import DataLoader

from data.base.durations import Clock
from data.loading.loader import BatchLoader, eval_loader, train_loader
from data.mixing.row_plan import RowPlan
from train.callbacks.build import build_callbacks
from train.callbacks.global_batch import GlobalBatch
from train.callbacks.learning_rate import LearningRate
from train.callbacks.restore_rng import RestoreRNG
from train.checkpoint.state import RunState, decode_random, timestamp_for_composer
from train.composer_compat import leave_sharded_models
from train.composer_model import DbrxForComposer
from train.config.ranks import train_microbatch_rows
from train.config.schema import TrainConfig
from train.console.bar import is_terminal
from train.hardware.allocator import keep_freed_memory
from train.loggers.build import LoggedRun, build_loggers
from train.optim.schedules import build_scheduler
from train.run.inputs import Inputs
from train.supervision.hangs.sections import waiting_for_data
from train.supervision.signals import StopSignals


def build_trainer(
    config: TrainConfig,
    *,
    model: DbrxForComposer,
    optimizer: torch.optim.Optimizer,
    device: Device,
    train_loader: DataLoader,
    eval_loader: DataLoader | None,
    clock: Clock,
    plan: RowPlan,
    callbacks: Sequence[Callback] = (),
    run: LoggedRun,
    precision: str,
    state: RunState | None,
    console: Sequence[LoggerDestination] = (),
) -> Trainer:
    """Build Composer's Trainer for the run. All durations passed to it are in batches (see durations.Clock).

    console: loggers that show the steps on the console. state: the state from which the run resumes; the tensors of the
    checkpoint have already been loaded.
    """
    if device.name == "cpu":
        keep_freed_memory()
    # The random state is restored first, because GlobalBatch and every later forward pass depend on it.
    first = [
        RestoreRNG([decode_random(rank) for rank in state.random] if state is not None else []),
        LearningRate(build_scheduler(config.scheduler, clock), plan),
        GlobalBatch(config.model),
    ]
    parallelism = None
    if config.fsdp_config is not None:
        # Composer must be configured for FSDP2, although train/distributed/build_model.py has already sharded the
        # model.
        parallelism = {"fsdp": FSDP2Config(state_dict_type="sharded")}
        leave_sharded_models()
    # Only rank 0 logs, because a launcher captures the output of the other ranks and shows all of it when one of them
    # fails.
    is_composers = config.log_to_console == "composer" and dist.get_global_rank() == 0
    trainer = Trainer(
        model=model,
        device=device,
        run_name=run.name,
        seed=config.seed,
        train_dataloader=DataSpec(train_loader),
        eval_dataloader=_evaluator(config, model, eval_loader),
        eval_interval=f"{clock.batches(config.eval_interval)}ba",
        max_duration=f"{clock.max_batches}ba",
        optimizers=optimizer,
        callbacks=[*first, *build_callbacks(config.callbacks), *callbacks],
        loggers=[*build_loggers(config, run), *console],
        progress_bar=config.progress_bar and is_composers and is_terminal(),
        log_to_console=is_composers,
        console_log_interval=f"{clock.batches(config.console_log_interval or '1ba')}ba",
        device_train_microbatch_size=train_microbatch_rows(config, dist.get_world_size()),
        precision=precision,
        parallelism_config=parallelism,
        dist_timeout=config.dist_timeout,
    )
    if state is not None:
        _resume(trainer, state)
    return trainer


def _resume(trainer: Trainer, state: RunState) -> None:
    trainer.state.load_state_dict(
        {
            "timestamp": {"Timestamp": timestamp_for_composer(state.timestamp)},
            "rank_zero_seed": state.rank_zero_seed,
            "dataset_state": {"train": {"position": state.position}, "eval": {}},
        },
        trainer.logger,
    )
    for callback in trainer.state.callbacks:
        if (saved := state.callbacks.get(type(callback).__qualname__)) is not None:
            callback.load_state_dict(saved)


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


def build_train_loader(config: TrainConfig, inputs: Inputs, signals: StopSignals) -> BatchLoader:
    loader = train_loader(
        inputs.data.streams,
        config.train_loader,
        inputs.data.plan,
        # The loader has one batch more than the run trains on, so that Composer's epoch, which is the whole run, never
        # ends. The position in the last checkpoint therefore stays valid, and a run with a longer max_duration can
        # resume from it.
        n_batches=inputs.max_batches + 1,
        rank=dist.get_global_rank(),
        world_size=dist.get_world_size(),
        pad_token_id=inputs.tokenizer.pad_token_id,
        limit=config.deadlines.data,
    )
    loader.interruptible, loader.waiting = signals.interruptible, waiting_for_data
    return loader


def build_eval_loader(config: TrainConfig, inputs: Inputs) -> BatchLoader | None:
    if config.eval_loader is None or inputs.eval_streams is None:
        return None
    loader = eval_loader(
        inputs.eval_streams,
        config.eval_loader,
        device_batch_size=config.device_eval_batch_size,
        rank=dist.get_global_rank(),
        world_size=dist.get_world_size(),
        pad_token_id=inputs.tokenizer.pad_token_id,
        limit=config.deadlines.data,
    )
    loader.waiting = waiting_for_data
    return loader
