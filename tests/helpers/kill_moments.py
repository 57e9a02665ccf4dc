"""Moments at which one process or all processes of a run are ended like by `kill -9`."""

import functools
import inspect
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import psutil

LAST = 12
"""Batches of the run. Stages begin with batch 5 (a ramp) and 9; batches 4, 9 and 11 are followed by an evaluation, and
every second batch by a save."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The call of a function at which processes are killed."""

    of: str
    """module:attribute through which the caller finds the function."""
    after: bool = False
    """Whether to kill after the call instead of before."""
    arguments: str = ""
    """Text that must occur in the arguments."""
    ranks: tuple[int, ...] = (0, 1)
    """Ranks that call the function."""
    batches: tuple[int, ...] = ()
    """Batches, counted from 0; empty means any batch."""
    calls: int = 1
    """Minimum number of calls per batch."""
    setup: bool = False
    """Whether the moment is before the first batch."""
    thread: str = ""
    """Name of a thread that must be running."""
    victim: str = "rank"
    """If not empty, the call is in a loader's worker: `worker` kills only the worker, `its rank` the rank."""


_SAVING = "train.checkpoint.saving"
_WRITER = "train.checkpoint.storage.writer"
_READ = "data.loading.batches:TrainBatches.__getitem__"

MOMENTS: Mapping[str, Moment] = {
    # Set-up, in the first start and in a resume.
    "inputs are opened": Moment(of="train.run.inputs:open_inputs", setup=True),
    "folder is owned": Moment(of="train.run.saving:own", after=True, ranks=(0,), setup=True),
    "incomplete checkpoints are deleted": Moment(of="train.run.saving:remove_leftovers", ranks=(0,), setup=True),
    "model is built": Moment(of="train.run.fit:build_model", after=True, setup=True),
    "start is loaded": Moment(of="train.run.fit:restore", after=True, setup=True),
    "folder is furnished": Moment(of="train.run.fit:furnish_save_folder", after=True, ranks=(0,), setup=True),
    "config.yaml is replaced": Moment(
        of="pathlib:Path.replace", arguments="/config.yaml", ranks=(0,), after=True, setup=True
    ),
    # Steps.
    "batch begins": Moment(of="train.callbacks.stream_monitor:StreamMonitor.batch_start"),
    "stage begins": Moment(of="train.callbacks.stream_monitor:StreamMonitor.batch_start", batches=(5, 9)),
    "stage ends": Moment(of="train.callbacks.stream_monitor:StreamMonitor.batch_end", batches=(4, 8)),
    "forward": Moment(of="train.models.dbrx:DbrxForCausalLM.forward", calls=2),
    "loss": Moment(of="train.composer_model:DbrxForComposer.loss", after=True, calls=2),
    "optimizer steps": Moment(of="torch.optim:AdamW.step"),
    "optimizer has stepped": Moment(of="torch.optim:AdamW.step", after=True),
    "batch ends": Moment(of="train.callbacks.stream_monitor:StreamMonitor.batch_end", after=True),
    # Data.
    "worker reads": Moment(of=_READ, victim="worker"),
    "worker has read": Moment(of=_READ, after=True, victim="worker"),
    "rank, while its worker reads": Moment(of=_READ, victim="its rank"),
    # Evaluation.
    "evaluation": Moment(of="train.composer_model:DbrxForComposer.eval_forward", batches=(4, 9, 11)),
    "evaluation ends": Moment(of="train.callbacks.run_record:RunRecord.eval_end", batches=(4, 9, 11)),
    # A save, from its first to its last step.
    "copy is taken": Moment(of=f"{_SAVING}.snapshot:Snapshot.take"),
    "copy is there": Moment(of=f"{_SAVING}.snapshot:Snapshot.take", after=True),
    "writer begins": Moment(of=f"{_SAVING}.background:save_checkpoint"),
    "step, while the writer writes": Moment(of="torch.optim:AdamW.step", thread="checkpoint-writer"),
    "folder for writing is made": Moment(of=f"{_SAVING}.save:_prepare", after=True, ranks=(0,)),
    "shard is opened": Moment(of=f"{_WRITER}:_HashingFiles.create_stream", arguments=".distcp"),
    "shard is half written": Moment(of=f"{_WRITER}:_Hashed.write", after=True, calls=20),
    "shard is written": Moment(of=f"{_WRITER}:HashingWriter.write_data", after=True),
    "index is renamed": Moment(of=f"{_WRITER}:_HashingFiles.rename", ranks=(0,)),
    "index is there": Moment(of=f"{_WRITER}:_HashingFiles.rename", after=True, ranks=(0,)),
    "all files are written": Moment(of=f"{_SAVING}.save:_write", after=True),
    "state.json is written": Moment(of=f"{_SAVING}.save:write_synced", arguments="state.json", ranks=(0,)),
    "state.json is there": Moment(of=f"{_SAVING}.save:write_synced", after=True, arguments="state.json", ranks=(0,)),
    "manifest is written": Moment(of=f"{_SAVING}.save:write_manifest", ranks=(0,)),
    "manifest gets its name": Moment(of="pathlib:Path.replace", arguments="manifest.json.part", ranks=(0,)),
    "between manifest and rename": Moment(of=f"{_SAVING}.save:write_manifest", after=True, ranks=(0,)),
    "between rename and latest": Moment(of=f"{_SAVING}.save:point_to", ranks=(0,)),
    "latest is made": Moment(of="pathlib:Path.symlink_to", after=True, ranks=(0,)),
    "latest is replaced": Moment(of=f"{_SAVING}.save:point_to", after=True, ranks=(0,)),
    "checkpoint is pinned": Moment(of="pathlib:Path.touch", arguments="/keep", ranks=(0,)),
    "writer ends": Moment(of=f"{_SAVING}.background:BackgroundSaver._save", after=True),
    "end of the save is noted": Moment(of=f"{_SAVING}.background:BackgroundSaver._conclude"),
    "record is written": Moment(of="train.callbacks.run_record:RunRecord._add", ranks=(0,)),
    "record is there": Moment(of="train.callbacks.run_record:RunRecord._add", after=True, ranks=(0,)),
    # Pruning of superseded checkpoints.
    "read-back begins": Moment(of=f"{_SAVING}.pruning:corruption"),
    "read-back": Moment(of="train.checkpoint.storage.files:block_hash", calls=2),
    "read-back ends": Moment(of=f"{_SAVING}.pruning:corruption", after=True),
    "superseded one is renamed": Moment(of=f"{_SAVING}.pruning:remove", ranks=(0,)),
    "superseded one is half deleted": Moment(of="os:unlink", after=True, arguments=".distcp", ranks=(0,)),
    "superseded one is deleted": Moment(of=f"{_SAVING}.pruning:remove", after=True, ranks=(0,)),
}


@dataclass(frozen=True, kw_only=True)
class Kill:
    """A kill at a moment, or after a number of seconds."""

    moment: str | None = None
    seconds: float = 0.0
    rank: int = 0
    everyone: bool = False
    """Whether to kill all ranks and their workers together, like a machine failure; otherwise one process."""
    batch: int = 0
    """The first call in or after this batch counts. In a worker, it is the first call for the data of this batch."""
    call: int = 1
    """Number of the call in the batch."""
    grace: float = 0.3
    """Seconds between SIGTERM and SIGKILL for the other ranks, like those of a launcher."""


def place(moment: Moment) -> tuple[Any, str]:
    """Return the module or class of the function, and its attribute name."""
    path, _, name = moment.of.rpartition("." if "." in moment.of.partition(":")[2] else ":")
    return resolve_name(path), name


class Trigger:
    """Replace the function of a kill's moment on a rank."""

    def __init__(self, kill: Kill | None, rank: int, folder: Path) -> None:
        """folder: contains the process ids of all ranks, and `struck` once the moment has been reached."""
        (folder / f"pid{rank}").write_text(str(os.getpid()))
        self._kill, self._folder, self._calls = kill, folder, 0
        self._batch = multiprocessing.get_context("fork").RawValue("i", 0)  # shared with workers
        self._rank_pid = os.getpid()
        if kill is not None and kill.moment is not None and kill.rank == rank:
            self._moment = MOMENTS[kill.moment]
            self._wrap()

    def in_batch(self, batch: int) -> None:
        self._batch.value = batch

    def _wrap(self) -> None:
        owner, name = place(self._moment)
        static = inspect.getattr_static(owner, name)
        real = getattr(owner, name)

        @functools.wraps(real)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if not self._moment.after:
                self._called(args)
            result = real(*args, **kwargs)
            if self._moment.after:
                self._called(args)
            return result

        setattr(owner, name, staticmethod(wrapped) if isinstance(static, staticmethod) else wrapped)

    def _called(self, args: tuple[Any, ...]) -> None:
        assert self._kill is not None
        moment = self._moment
        in_worker = os.getpid() != self._rank_pid
        if in_worker != (moment.victim != "rank"):
            return
        batch = args[1] if in_worker else self._batch.value
        wanted = batch == self._kill.batch if moment.batches else batch >= self._kill.batch
        if not wanted or not any(moment.arguments in str(arg) for arg in args or ("",)):
            return
        if moment.thread and moment.thread not in [thread.name for thread in threading.enumerate()]:
            return
        self._calls += 1
        if self._calls == self._kill.call:
            self._strike()

    def _strike(self) -> None:
        assert self._kill is not None
        (self._folder / "struck").touch()
        if self._kill.everyone:
            kill_all([int(path.read_text()) for path in self._folder.glob("pid*")])
        os.kill(self._rank_pid if self._moment.victim == "its rank" else os.getpid(), signal.SIGKILL)
        time.sleep(60)  # a worker ends with its rank


def kill_all(ranks: list[int]) -> None:
    """Kill these processes and their children. This process is killed last."""
    found: list[psutil.Process] = []
    for pid in ranks:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            found += [process, *process.children(recursive=True)]
    for process in sorted(found, key=lambda each: each.pid == os.getpid()):
        with suppress(psutil.NoSuchProcess):
            process.kill()
