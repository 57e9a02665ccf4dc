"""The save folder during a run: owned, with room for checkpoints, and written to by the saver."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from composer.core import State
from composer.utils import dist

from data.base.console import logger
from data.base.durations import parse_wall_time
from data.base.errors import ConfigError
from train.callbacks.checkpoint_saver import CheckpointSaver, Saving
from train.callbacks.run_record import RunRecord
from train.checkpoint.owner import FLOCK, Owner, own
from train.checkpoint.save_folder import checkpoints, recover, remove_leftovers
from train.checkpoint.saving.retention import Retention
from train.checkpoint.saving.save import point_to
from train.checkpoint.saving.space import check_space, count_saves, describe_space, file_bytes
from train.config.load import to_yaml
from train.config.schema import TrainConfig
from train.distributed.first_rank import on_first_rank
from train.run.inputs import Inputs, starting_from
from train.supervision.events import Events
from train.supervision.preemption import Preemption
from train.supervision.signals import StopSignals
from train.supervision.wall_time import WallTime
from train.weights.start import find_start


@dataclass(frozen=True)
class Supervision:
    """What ends a run from outside, and how that is reported."""

    events: Events
    signals: StopSignals
    resume_command: str


@contextmanager
def owned(config: TrainConfig, inputs: Inputs) -> Iterator[tuple[Owner | None, Inputs]]:
    """Within, the run owns its save folder, on rank 0; the others, and a run without one, get None. The inputs are
    those given, or start from a newer checkpoint, which a killed run had written whole but not given its name.

    Every rank has to call it. Raises ConfigError, on every rank, when another run owns the folder or has saved into it
    since `inputs` were opened, and when there is no room for a checkpoint.
    """
    owners: list[Owner] = []
    with ExitStack() as stack:
        if (folder := inputs.folder) is not None:
            if dist.get_global_rank() == 0 and not folder.exists():
                stack.callback(_remove_if_unused, folder)
            chosen = [inputs.start]

            def take() -> None:
                owners.append(stack.enter_context(own(folder, inputs.run_name)))
                recovered = recover(folder)
                for path in recovered:
                    logger.info(f"recovered {path}: it was written whole when a run was killed")
                if recovered and config.autoresume:
                    chosen[0] = find_start(config, folder)
                    assert chosen[0] is not None
                    logger.info(f"autoresume: resuming from {chosen[0].path}")

            on_first_rank(take)
            dist.broadcast_object_list(chosen, src=0)
            inputs = starting_from(inputs, config, inputs.run_name, chosen[0])
            on_first_rank(partial(_prepare, folder, config, inputs))
        yield owners[0] if owners else None, inputs


def _prepare(folder: Path, config: TrainConfig, inputs: Inputs) -> None:
    _check_unchanged(folder, config, inputs)
    for path in remove_leftovers(folder):
        logger.info(f"deleted {path}: a killed run has left it incomplete")
    if present := checkpoints(folder):
        point_to(present[-1])
    n_saves = count_saves(config, inputs.data.clock)
    logger.info(describe_space(config, folder, n_saves, world_size=dist.get_world_size()))
    check_space(config, folder, n_saves, world_size=dist.get_world_size())


def _remove_if_unused(folder: Path) -> None:
    """A folder that this run has made, when it was refused before it wrote anything."""
    with suppress(OSError):
        if all(path.name == FLOCK for path in folder.iterdir()):
            shutil.rmtree(folder)


def _check_unchanged(folder: Path, config: TrainConfig, inputs: Inputs) -> None:
    """A run that ended while this one opened its inputs may have saved more."""
    if config.save_overwrite and not config.autoresume:
        return
    known = {error.checkpoint for error in inputs.start.corrupt} if inputs.start is not None else set()
    newest = next((path for path in reversed(checkpoints(folder)) if path not in known), None)
    started_from = inputs.start.path if inputs.resuming and inputs.start is not None else None
    if newest != started_from:
        raise ConfigError(
            f"save_folder {folder} has {newest} now, which another run has saved while this one started: start again"
        )


def build_savers(config: TrainConfig, inputs: Inputs, owner: Owner | None) -> list[CheckpointSaver]:
    """The callback that saves checkpoints; none without a save_folder. owner: on rank 0. For every rank."""
    if inputs.folder is None:
        return []
    start, interval, every = inputs.start, inputs.data.clock.batches(config.save_interval), config.save_keep_every
    fsdp = config.fsdp_config
    saving = Saving(
        folder=inputs.folder,
        interval=interval,
        last_batch=inputs.max_batches,
        retention=Retention(
            newest=config.save_num_checkpoints_to_keep, every=every * interval if every is not None else None
        ),
        gather=fsdp is not None and fsdp.state_dict_type == "full",
        background=config.save_async,
        replicas=(fsdp.data_parallel_replicate_degree or 1) if fsdp is not None else 1,
        timeout=config.dist_timeout,
        on_error=config.on_save_error,
        run_id=inputs.run_id,
        run_name=inputs.run_name,
        config=to_yaml(config),
    )
    # Loaded just now, and compared with its manifest on the way.
    verified = start.path if start is not None and start.resuming and start.run_id is not None else None
    return [CheckpointSaver(saving, verified=verified, check_owner=owner.check if owner is not None else _nothing)]


def build_preemption(
    config: TrainConfig,
    inputs: Inputs,
    savers: Sequence[CheckpointSaver],
    records: Sequence[RunRecord],
    supervision: Supervision,
) -> Preemption:
    """savers, records: of build_savers and of the run; at most one each."""

    def save(state: State) -> Path | None:
        path = savers[0].save_now(state)
        if path is not None:
            records[0].note_checkpoint(state)
        return path

    wall_time = None
    if config.max_wall_time is not None:
        n_bytes = file_bytes(config, dist.get_world_size())
        wall_time = WallTime(parse_wall_time(config.max_wall_time), file_bytes=n_bytes)
        logger.info(f"max_wall_time {config.max_wall_time}: {wall_time}")
    return Preemption(
        supervision.signals,
        wall_time=wall_time,
        save=save if savers else None,
        longest_save=lambda: max((saver.longest_save for saver in savers), default=0.0),
        events=supervision.events,
        first_batch=inputs.first_batch,
        resumed_from=inputs.start.path if inputs.start is not None and inputs.resuming else None,
        resume_command=supervision.resume_command,
    )


@contextmanager
def finishing(savers: Sequence[CheckpointSaver]) -> Iterator[None]:
    """Around training: what is being saved when it ends with an error is finished all the same."""
    try:
        yield
    except BaseException:
        for each in savers:
            each.saver.abandon(each.saving.timeout)
        raise


def _nothing() -> None:
    pass
