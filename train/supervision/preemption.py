"""Preemption: save and end a run on all ranks together, with an exit code that lets a scheduler restart it."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from data.base.console import logger as console
from train.supervision.events import Events
from train.supervision.exit_codes import ExitCode, RunStopped
from train.supervision.signals import StopSignals
from train.supervision.wall_time import WallTime

_KEPT = "evaluation_due"


class Preemption(Callback):
    """After a signal to any rank, or shortly before max_wall_time, finishes the step, saves, and raises RunStopped.

    At the end of a batch, this callback runs before slow callbacks and before CheckpointSaver. If the last batch is
    therefore not evaluated or exported, the evaluation or export follows after a resume: `evaluation_due` is saved in
    the checkpoint, and hf_checkpointer finds the missing export.
    """

    def __init__(
        self,
        signals: StopSignals,
        *,
        wall_time: WallTime | None,
        save: Callable[[State], Path | None] | None,
        longest_save: Callable[[], float],
        sending: Callable[[], float],
        events: Events,
        first_batch: int,
        resumed_from: Path | None,
        resume_command: str,
    ) -> None:
        """save: saves and commits a checkpoint of the current batch, unless it has already been saved, and records the
        checkpoint; None if there is no save_folder. longest_save: seconds of the longest save of this process. sending:
        seconds needed to upload all pending checkpoints and one more checkpoint."""
        self._signals, self._wall_time, self._save, self._longest_save = signals, wall_time, save, longest_save
        self._sending = sending
        self._events, self._first_batch = events, first_batch
        self._resumed_from, self._resume_command = resumed_from, resume_command
        self._cause: str | None = None
        self._exit_code = 0
        """The exit code if nothing can be saved."""
        self.evaluation_due = False
        """Whether the batch that the run resumes from still has to be evaluated."""

    def state_dict(self) -> dict[str, bool]:
        return {_KEPT: True} if self.evaluation_due else {}

    def load_state_dict(self, state: dict[str, bool]) -> None:
        self.evaluation_due = state.get(_KEPT, False)

    def should_end(self, state: State) -> bool:
        """Whether the run must end. The result is the same on every rank, and every rank must call this."""
        if self._cause is None:
            is_almost_over = (
                self._wall_time is not None and state.timestamp.batch > self._first_batch and self._is_almost_over()
            )
            flags = state.device.tensor_to_device(torch.tensor([self._signals.received or 0, int(is_almost_over)]))
            dist.all_reduce(flags, reduce_operation="MAX")
            number, is_almost_over = flags.tolist()
            if number or is_almost_over:
                self._cause = _name(number) if number else "max_wall_time is almost reached"
                self._exit_code = 128 + number if number else ExitCode.FIXABLE
                console.info(f"{self._cause}: the run ends at batch {state.timestamp.batch.value}")
        return self._cause is not None

    def before_dataloader(self, state: State, logger: Logger) -> None:
        if self._wall_time is not None:
            self._wall_time.begin_step()

    def batch_end(self, state: State, logger: Logger) -> None:
        if self._wall_time is not None:
            self._wall_time.end_step()
        self.evaluation_due = False
        self.should_end(state)

    def eval_before_all(self, state: State, logger: Logger) -> None:
        if self._cause is not None:
            self.evaluation_due = True
            self._leave(state, logger)

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        if self.should_end(state):
            self.evaluation_due = True
            self._leave(state, logger)

    def eval_end(self, state: State, logger: Logger) -> None:
        self.evaluation_due = False

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        if self._cause is not None:
            self._leave(state, logger)

    def epoch_end(self, state: State, logger: Logger) -> None:
        # A run is a single epoch, with one batch more than the run trains on. The epoch ends early only if at least one
        # rank was interrupted while it waited for a batch. Composer has then already advanced its clock to the next
        # epoch.
        if self.should_end(state):
            assert state.previous_timestamp is not None
            state.timestamp = state.previous_timestamp
            self._leave(state, logger)

    def _is_almost_over(self) -> bool:
        assert self._wall_time is not None
        self._wall_time.note_save(self._longest_save())
        self._wall_time.note_sending(self._sending())
        return self._wall_time.is_almost_over()

    def _leave(self, state: State, logger: Logger) -> NoReturn:
        batch = state.timestamp.batch.value
        if self._save is None:
            code, what = self._exit_code, "nothing was saved, because there is no save_folder"
        elif batch == self._first_batch and self._resumed_from is None:
            code, what = self._exit_code, "nothing was saved, because no batch has been trained yet"
        else:
            # If no batch has been trained since the resume, the checkpoint that the run resumed from is still current.
            path = self._save(state) if batch > self._first_batch else self._resumed_from
            code = self._exit_code if path is None else ExitCode.RESUMABLE
            what = f"batch {batch} could not be saved" if path is None else f"batch {batch} is saved in {path}"
        message = f"{self._cause}: {what}"
        self._events.report("preempted", batch, message, logger=logger, on_console=False, exit_code=int(code))
        again = f"; resume with: {self._resume_command}" if code == ExitCode.RESUMABLE else ""
        raise RunStopped(code, f"{message}{again}")


def _name(number: int) -> str:
    return f"{signal.Signals(number).name} received"
