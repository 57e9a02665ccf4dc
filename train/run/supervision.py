"""What ends a run from outside."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from composer.core import State
from composer.utils import dist

from data.base.console import logger
from data.base.durations import parse_wall_time
from train.callbacks.checkpoint_saver import CheckpointSaver
from train.callbacks.run_record import RunRecord
from train.checkpoint.remote.mirror import Mirror
from train.checkpoint.saving.space import checkpoint_bytes, file_bytes
from train.config.schema import TrainConfig
from train.run.inputs import Inputs
from train.supervision.events import Events
from train.supervision.preemption import Preemption
from train.supervision.signals import StopSignals
from train.supervision.wall_time import WallTime


@dataclass(frozen=True)
class Supervision:
    """What ends a run from outside, and how that is reported."""

    events: Events
    signals: StopSignals
    resume_command: str


def build_preemption(
    config: TrainConfig,
    inputs: Inputs,
    savers: Sequence[CheckpointSaver],
    records: Sequence[RunRecord],
    mirror: Mirror | None,
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
        sent = checkpoint_bytes(config, dist.get_world_size()) if mirror is not None else 0
        wall_time = WallTime(parse_wall_time(config.max_wall_time), file_bytes=n_bytes, sent_bytes=sent)
        logger.info(f"max_wall_time {config.max_wall_time}: {wall_time}")
    return Preemption(
        supervision.signals,
        wall_time=wall_time,
        save=save if savers else None,
        longest_save=lambda: max((saver.longest_save for saver in savers), default=0.0),
        sending=mirror.seconds_to_send if mirror is not None else lambda: 0.0,
        events=supervision.events,
        first_batch=inputs.first_batch,
        resumed_from=inputs.start.path if inputs.start is not None and inputs.resuming else None,
        resume_command=supervision.resume_command,
    )
