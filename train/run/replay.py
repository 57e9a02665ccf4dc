"""Recompute a batch whose loss or gradient was not finite, under the conditions of the original run, and compare the
results."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor

from data.base.console import logger as console
from data.base.errors import ConfigError
from train.checkpoint.save_folder import batch_of, checkpoints, saved_config
from train.checkpoint.state import encode_random
from train.checkpoint.storage.manifest import CONFIG
from train.config.callbacks import CallbacksConfig, LoggersConfig
from train.config.load import load_saved_config
from train.config.schema import TrainConfig
from train.config.supervision import ExpertsConfig
from train.run.fit import fit
from train.stability.incidents import Incident, read_batch, read_incident
from train.stability.measurement import StepMeasurement
from train.stability.step_check import random_state


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """The recorded and the recomputed results of one rank."""

    recorded: str
    """The rank's part of the loss in the original run, in the format of float.hex."""
    replayed: str
    """The rank's part of the recomputed loss, in the same format."""
    same_rows: bool
    same_random: bool

    @property
    def is_same(self) -> bool:
        return self.recorded == self.replayed and self.same_rows and self.same_random


class _Done(Exception):
    """Raised when the batch has been recomputed, to end the run."""

    def __init__(self, ranks: Sequence[Replayed]) -> None:
        super().__init__()
        self.ranks = ranks


class _Compare(Callback):
    """Recomputes the batch of the incident, compares its loss, rows and random state with the recorded values, and ends
    the run before the optimizer step."""

    def __init__(self, incident: Incident, mine: Mapping[str, Tensor]) -> None:
        """mine: the recorded batch of this rank."""
        self.incident, self.recorded_batch = incident, mine
        self.measurement = StepMeasurement()
        self.same_rows = False
        self.random: dict[str, Any] = {}

    def batch_start(self, state: State, logger: Logger) -> None:
        self.random = random_state()
        self.measurement.begin(state.batch["input_ids"].shape[0])
        self.same_rows = all(torch.equal(state.batch[name].cpu(), its) for name, its in self.recorded_batch.items())

    def after_loss(self, state: State, logger: Logger) -> None:
        self.measurement.add(state)

    def after_train_batch(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value != self.incident.batch:
            return
        recorded = self.incident.ranks[dist.get_global_rank()]
        mine = Replayed(
            recorded=recorded.loss,
            replayed=float.hex(self.measurement.loss),
            same_rows=self.same_rows,
            same_random=_as_json(encode_random(self.random)) == _as_json(recorded.random),
        )
        raise _Done(dist.all_gather_object(mine))


def replay(path: Path) -> list[Replayed]:
    """Recompute the batch of an incident, and return the result of each rank. path: the folder of the incident in the
    save folder of its run. The save folder is not modified.

    Training starts from the newest checkpoint before the batch, or in the same way as the original run if there is no
    such checkpoint. Raises the same errors as `fit`, and ConfigError, for example if the number of ranks differs from
    that of the original run.
    """
    incident = read_incident(path)
    n_ranks, world_size = len(incident.ranks), int(os.environ.get("WORLD_SIZE", "1"))
    if n_ranks != world_size:
        raise ConfigError(
            f"{path} is from a run on {n_ranks} ranks, but this command runs on {world_size} rank(s): use the launcher "
            f"of the run; on one node: composer -n {n_ranks} scripts/replay_batch.py {path}"
        )
    mine = read_batch(path, int(os.environ.get("RANK", "0")))
    folder = path.absolute().parents[1]
    present = [each for each in checkpoints(folder) if batch_of(each) <= incident.batch]
    config = saved_config(present[-1]) if present else load_saved_config(folder / CONFIG)
    assert config is not None
    with _copy(path, present[-1] if present else None) as copy:
        where = present[-1].name if present else "the beginning of the run"
        console.info(f"recomputing batch {incident.batch} of {incident.run_name}, starting from {where}")
        try:
            fit(_without_output(config, incident, copy), callbacks=[_Compare(incident, mine)])
        except _Done as done:
            return list(done.ranks)
    end = f"at max_duration {config.max_duration}"
    raise ConfigError(f"{path} is from batch {incident.batch}, but the run ends before this batch, {end}")


def _without_output(config: TrainConfig, incident: Incident, folder: Path) -> TrainConfig:
    """Return the run's config for resuming in another folder. The sections that are removed do not affect the
    weights."""
    return replace(
        config,
        run_name=incident.run_name,
        save_folder=str(folder),
        save_interval="1000000000ba",
        save_overwrite=False,
        save_async=False,
        autoresume=True,
        max_wall_time=None,
        eval_loader=None,
        eval_first=False,
        # The original run skipped any non-finite steps before this batch.
        on_nonfinite="skip",
        callbacks=CallbacksConfig(),
        loggers=LoggersConfig(),
        experts=ExpertsConfig(interval=None),
        progress_bar=False,
        log_to_console=False,
    )


@contextmanager
def _copy(incident: Path, checkpoint: Path | None) -> Iterator[Path]:
    """Create a save folder with a link to the checkpoint on each node, so that the save folder of the run is not
    modified."""
    name = hashlib.blake2b(str(incident.absolute()).encode(), digest_size=8).hexdigest()
    # The ranks of a node share this folder. Other replays use other folders.
    folder = Path(tempfile.gettempdir()) / f"replay-{name}-{os.environ.get('MASTER_PORT', os.getpid())}"
    folder.mkdir(exist_ok=True)
    if checkpoint is not None:
        with suppress(FileExistsError):
            (folder / checkpoint.name).symlink_to(checkpoint.absolute())
    try:
        yield folder
    finally:
        if dist.get_local_rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)


def _as_json(value: Any) -> Any:
    """Convert tuples to lists, as JSON does."""
    if isinstance(value, Mapping):
        return {key: _as_json(each) for key, each in value.items()}
    return [_as_json(each) for each in value] if isinstance(value, list | tuple) else value
