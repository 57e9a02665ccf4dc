"""Build the objects that save and end a run after a signal or before max_wall_time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    """The objects that are needed to end a run early: the events, the signals that end the run, and the command that
    resumes the run."""

    events: Events
    signals: StopSignals
    resume_command: str


class RecordedSaver:
    """Saves a checkpoint of a run that ends early, and adds the checkpoint to record.jsonl, in the same way as for
    checkpoints at regular intervals."""

    def __init__(self, saver: CheckpointSaver, record: RunRecord) -> None:
        self._saver, self._record = saver, record

    def save_now(self, state: State, *, random: Mapping[str, Any] | None = None) -> Path | None:
        """Save a checkpoint like CheckpointSaver.save_now, and add it to record.jsonl."""
        path = self._saver.save_now(state, random=random)
        if path is not None:
            self._record.note_checkpoint(state)
        return path

    def committed(self, state: State) -> list[Path]:
        """Same as CheckpointSaver.committed."""
        return self._saver.committed(state)

    @property
    def longest_save(self) -> float:
        """Longest expected duration of a save in seconds, including the wait for a save in progress."""
        return self._saver.longest_save * (2 if self._saver.saver.is_saving else 1)


def build_recorded_saver(savers: Sequence[CheckpointSaver], record: RunRecord) -> RecordedSaver | None:
    """savers: the result of build_savers. Returns None without a save_folder."""
    return RecordedSaver(savers[0], record) if savers else None


def build_preemption(
    config: TrainConfig,
    inputs: Inputs,
    saver: RecordedSaver | None,
    mirror: Mirror | None,
    supervision: Supervision,
) -> Preemption:
    wall_time = None
    if config.max_wall_time is not None:
        n_bytes = file_bytes(config, dist.get_world_size())
        sent = checkpoint_bytes(config, dist.get_world_size()) if mirror is not None else 0
        wall_time = WallTime(parse_wall_time(config.max_wall_time), file_bytes=n_bytes, sent_bytes=sent)
        logger.info(f"max_wall_time {config.max_wall_time}: {wall_time}")
    return Preemption(
        supervision.signals,
        wall_time=wall_time,
        save=saver.save_now if saver is not None else None,
        longest_save=lambda: saver.longest_save if saver is not None else 0.0,
        sending=mirror.seconds_to_send if mirror is not None else lambda: 0.0,
        events=supervision.events,
        first_batch=inputs.first_batch,
        resumed_from=inputs.start.path if inputs.start is not None and inputs.resuming else None,
        resume_command=supervision.resume_command,
    )
