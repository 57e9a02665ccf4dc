"""Saves checkpoints, in the background or synchronously."""

import datetime
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist, reproducibility
from torch import Tensor
from torch.utils.data import DataLoader

from data.base.console import logger as console
from data.base.errors import ConfigError, DataError, os_errors_named, plain_os_errors
from data.base.problems import listed_clauses
from data.base.sizes import format_bytes
from data.base.versions import versions
from train.checkpoint.load import refuse_not_finite, saved_parameters, saved_tensors
from train.checkpoint.retention import Retention
from train.checkpoint.save_folder import batch_of, checkpoints
from train.checkpoint.saving.background import BackgroundSaver, Content, Written
from train.checkpoint.saving.pruning import Pruning
from train.checkpoint.saving.ranks import separate_ranks
from train.checkpoint.state import RunState, encode_random, timestamp_from_composer, to_json
from train.checkpoint.storage.finite import NotFiniteError
from train.checkpoint.storage.manifest import Manifest
from train.composer_model import DbrxForComposer
from train.supervision.exit_codes import ExitCode, RunStopped
from train.supervision.hangs.deadlines import Section
from train.supervision.hangs.sections import add_sample, within


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Settings for saving checkpoints: the folder, the interval, and the run to which the checkpoints belong."""

    folder: Path
    interval: int
    """Batches between two checkpoints. A checkpoint of the last batch is always saved."""
    last_batch: int
    retention: Retention
    gather: bool
    """Whether rank 0 gathers and writes all tensors (state_dict_type: full)."""
    background: bool
    """Whether checkpoints are written while training continues (save_async)."""
    replicas: int
    """Number of replicas of the model under HYBRID_SHARD. Only the first replica is saved."""
    timeout: float
    """Maximum number of seconds that ranks wait for each other during a save."""
    on_error: str
    """on_save_error: stop or warn. A failure to save the last checkpoint always raises an error."""
    run_id: str
    run_name: str
    config: str
    """The run's config as YAML."""


class CheckpointSaver(Callback):
    """Saves a checkpoint every `interval` batches and after the last batch.

    If the file system rejects a write, every rank raises DataError or ConfigError (see plain_os_errors), or logs a
    warning (on_save_error: warn). An error in a background save is reported at the end of the next step. The incomplete
    checkpoint is deleted, and earlier checkpoints are kept.
    """

    def __init__(
        self,
        saving: Saving,
        *,
        verified: Path | None,
        check_owner: Callable[[], None],
        on_saved: Callable[[Written], None],
    ) -> None:
        """verified: the checkpoint that the run resumes from, which has been verified. check_owner: raises DataError on
        rank 0 if this run no longer owns the folder. on_saved: called on every rank with each committed checkpoint.

        Must be created on every rank."""
        self.saving, self._on_saved = saving, on_saved
        self.saver = BackgroundSaver(
            ranks=separate_ranks(saving.timeout, replicas=saving.replicas),
            main_ranks=separate_ranks(saving.timeout),
            confirm=check_owner,
            pruning=Pruning(saving.folder, saving.retention, verified),
        )
        self._saved: tuple[int, Path] | None = None
        """Batch and path of the newest checkpoint that this process has committed."""
        self.longest_save = 0.0
        """Duration, in seconds, of the longest save in this process."""

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        self._note(self.saver.poll())
        batch = state.timestamp.batch.value
        if batch % self.saving.interval == 0 or batch == self.saving.last_batch:
            self._save(state, background=self.saving.background)

    def fit_end(self, state: State, logger: Logger) -> None:
        self.wait()

    def wait(self) -> Path | None:
        """Wait until nothing is being saved, and return the newest checkpoint that this process has committed. Every
        rank must call this. If a save failed, every rank raises the error."""
        with self._section():
            self._note(self.saver.wait())
        return self._saved[1] if self._saved is not None else None

    def save_now(self, state: State, *, random: Mapping[str, Any] | None = None) -> Path | None:
        """Save and commit a checkpoint of the current batch, unless it has already been saved, and return its path.
        Returns None if the file system rejects the write and on_error is warn. Every rank must call this.
        random: the random state to save for this rank (see composer.utils.reproducibility); None saves the current
        state.
        """
        self.wait()
        batch = state.timestamp.batch.value
        if self._saved is None or self._saved[0] != batch:
            self._save(state, random, background=False)
            self.wait()
        return self._saved[1] if self._saved is not None and self._saved[0] == batch else None

    def committed(self, state: State) -> list[Path]:
        """Wait until nothing is being saved, and return the run's checkpoints up to its current batch, oldest first.
        Every rank must call this. All ranks return the checkpoints that rank 0 finds."""
        self.wait()
        found: list[list[Path]] = [[]]
        if dist.get_global_rank() == 0:
            # Checkpoints of later batches are no longer part of the run, because it resumed from an earlier checkpoint.
            present = checkpoints(self.saving.folder)
            found = [[path for path in present if batch_of(path) <= state.timestamp.batch.value]]
        dist.broadcast_object_list(found, src=0)
        return found[0]

    def _section(self) -> AbstractContextManager[None]:
        """Return the watchdog's section that covers saving and waiting for the writer thread. The section has no
        deadline if callbacks upload the checkpoint, because the duration of an upload is not bounded."""
        return within(Section.SEND) if self.saver.on_committed else within(Section.SAVE, measured=False)

    def _save(self, state: State, random: Mapping[str, Any] | None = None, *, background: bool) -> None:
        batch = state.timestamp.batch.value
        (optimizer,) = state.optimizers
        checkpoint = self.saving.folder / f"ep{state.timestamp.epoch.value}-ba{batch}"
        tensors = saved_tensors(_model(state).model, optimizer)
        _stop_unless_finite(checkpoint, tensors)
        content = Content(
            tensors=tensors,
            state=to_json(_run_state(state, random)),
            config=self.saving.config,
            about=self._about(state),
            gather=self.saving.gather,
        )
        with self._section():
            self._note(self.saver.save(checkpoint, content, background=background))
        if not background:
            self.wait()

    def _note(self, written: Written | None) -> None:
        if written is None:
            return
        self.longest_save = max(self.longest_save, written.seconds)
        add_sample(Section.SAVE, written.seconds)
        if written.refused is not None:
            self._report(written.refused, written.batch, written.needed)
        else:
            self._saved = written.batch, written.checkpoint
            size = format_bytes(written.needed)
            console.info(f"batch {written.batch}: saved {written.checkpoint} ({size}, {written.seconds:.1f} s)")
            self._on_saved(written)

    def _about(self, state: State) -> Manifest:
        return Manifest(
            run_id=self.saving.run_id,
            run_name=self.saving.run_name,
            batch=state.timestamp.batch.value,
            epoch=state.timestamp.epoch.value,
            written=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            world_size=dist.get_world_size(),
            versions=versions(),
        )

    def _report(self, refused: OSError, batch: int, needed: int) -> None:
        subject = f"save_folder {self.saving.folder}"
        what = f"the checkpoint of batch {batch}, which requires {format_bytes(needed)}"
        with suppress(OSError):  # disk_usage fails if the folder no longer exists
            what += f" ({format_bytes(shutil.disk_usage(self.saving.folder).free, down=True)} free)"
        again = "start again with autoresume=true to resume from the previous checkpoint"
        try:
            with (
                os_errors_named(f"{subject}, for {what},", "written", as_error=DataError),
                plain_os_errors(subject, "specify another save_folder", needed_for=what, again=again),
            ):
                raise refused
        except (ConfigError, DataError) as error:
            if self.saving.on_error == "stop" or batch == self.saving.last_batch:
                raise
            console.warning(f"{error}. The run continues without this checkpoint (on_save_error: warn)")


def _stop_unless_finite(checkpoint: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise RunStopped on every rank, before anything is written, if a tensor contains NaN or infinite values."""
    try:
        refuse_not_finite(checkpoint, tensors)
    except NotFiniteError as error:
        names = listed_clauses(error.tensors)
        raise RunStopped(
            ExitCode.UNSTABLE,
            f"{checkpoint.name} is not saved, because {names} contain NaN or infinite values: to resume from the "
            "previous checkpoint, start again with autoresume=true and a lower optimizer.lr",
        ) from None


def _model(state: State) -> DbrxForComposer:
    model = getattr(state.model, "module", state.model)  # DistributedDataParallel wraps the model
    assert isinstance(model, DbrxForComposer)
    return model


def _run_state(state: State, random: Mapping[str, Any] | None) -> RunState:
    """Return the state of the run. Every rank must call this. random: the random state to save for this rank; None
    saves the current state."""
    (optimizer,) = state.optimizers
    # The optimizer contains the sharded parameters. saved_parameters returns these parameters with their names.
    names = {param: name for name, param in saved_parameters(_model(state).model).items()}
    assert isinstance(state.train_dataloader, DataLoader)
    data: Any = state.train_dataloader.dataset
    return RunState(
        timestamp=timestamp_from_composer(state.timestamp.state_dict()),
        position=data.state_dict(int(state.timestamp.sample_in_epoch.value), True)["position"],
        rank_zero_seed=state.rank_zero_seed,
        callbacks={type(each).__qualname__: saved for each in state.callbacks if (saved := each.state_dict())},
        optimizer=type(optimizer).__qualname__,
        param_groups=[
            {**group, "params": [names[param] for param in group["params"]]} for group in optimizer.param_groups
        ],
        random=[encode_random(each) for each in _of_all_ranks(random)],
    )


def _of_all_ranks(random: Mapping[str, Any] | None) -> Sequence[Mapping[str, Any]]:
    return reproducibility.get_rng_state() if random is None else dist.all_gather_object(random)
