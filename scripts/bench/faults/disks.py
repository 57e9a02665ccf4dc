"""Faults: disks that are full or read-only, a limit on file sizes, and a save folder that two runs use."""

import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.bench.faults.processes import Ended, Running
from scripts.bench.faults.runs import LAST, OTHER_MODEL, REFUSED, SAME, SAVED, SKIPPED, Case, Lab, refusal

if TYPE_CHECKING:
    from composer.core import State
    from composer.loggers import Logger

_MIB = 1 << 20
Hook = Callable[[Path], Callable[[], None]]
"""Maps the folder of a disk to a function that runs inside the training process."""
_BATCH = SAVED[1]
"""The batch whose checkpoint cannot be saved."""
_STOPPED = "error names the cause, no partial files left, same model after resume"
_WARNED = "warning names the cause, no partial files left, same model"
_REFUSED = "error before training names the cause"
_OWNED = "error names the owner"
_TAKEN = "folder taken over, same model"


@contextmanager
def _small_disk(folder: Path) -> Iterator[bool]:
    """Mount a file system of 32 MB at the folder. Yields False if this user is not allowed to mount file systems."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={32 * _MIB}", "tmpfs", str(folder)]
    mounted = shutil.which("mount") is not None and not subprocess.run(command, capture_output=True).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def _during(before: Callable[[], None], after: Callable[[], None]) -> None:
    """Call before() when saving the checkpoint of _BATCH begins, and after() when it ends. Runs inside the training
    process."""
    from train.callbacks.checkpoint_saver import CheckpointSaver

    real = CheckpointSaver.batch_checkpoint

    def batch_checkpoint(self: CheckpointSaver, state: "State", logger: "Logger") -> None:
        here = state.timestamp.batch.value == _BATCH
        if here:
            self.wait()  # wait until the previous checkpoint is complete
            before()
        try:
            real(self, state, logger)
            if here:
                self.wait()
        finally:
            if here:
                after()

    CheckpointSaver.batch_checkpoint = batch_checkpoint


def _fill(folder: Path) -> None:
    left = 300_000
    (folder / "filler").write_bytes(bytes(shutil.disk_usage(folder).free - left))


def _full(folder: Path) -> None:
    _during(partial(_fill, folder), (folder / "filler").unlink)


def _full_meanwhile(folder: Path) -> None:
    """Fill the disk after the free space was checked."""
    from train.checkpoint.storage.writer import HashingWriter

    real = HashingWriter.write_data

    def write_data(self: HashingWriter, *arguments: Any) -> Any:
        _fill(folder)
        return real(self, *arguments)

    def restore() -> None:
        HashingWriter.write_data = real
        (folder / "filler").unlink()

    _during(partial(setattr, HashingWriter, "write_data", write_data), restore)


def _read_only(folder: Path) -> None:
    _during(partial(_remount, folder, "ro"), partial(_remount, folder, "rw"))


def _remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


def _limit_files(n_bytes: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if n_bytes < 0 else n_bytes, hard))


def _limited() -> None:
    _during(partial(_limit_files, 200_000), partial(_limit_files, -1))


def _saving(policy: str, hook: Hook, reason: str, mount: bool, lab: Lab) -> Iterator[str]:
    """Run with `on_save_error` set to `policy`. The checkpoint of _BATCH cannot be saved."""
    disk = lab.new()
    with _small_disk(disk) if mount else nullcontext(True) as possible:
        if not possible:
            yield SKIPPED
            return
        run = disk / "run"
        ended = lab.resume(run, f"on_save_error={policy}", hook=hook(disk))
        yield (_after_a_stop if policy == "stop" else _after_a_warning)(lab, ended, run, reason)


def _after_a_stop(lab: Lab, ended: Ended, run: Path, reason: str) -> str:
    if ended.code == 0:
        return "not noticed"
    if (seen := refusal(ended, str(run), reason)) != REFUSED:
        return str(seen)
    if (left := _left(run, [SAVED[0]])) is not None:
        return left
    again = lab.outcome(lab.resume(run), run)
    return _STOPPED if again == SAME else f"after resume: {again}"


def _after_a_warning(lab: Lab, ended: Ended, run: Path, reason: str) -> str:
    if ended.code != 0:
        return str(refusal(ended))
    if not all(word in ended.text for word in ("warning: ", str(run), reason)):
        return "no warning with path and reason"
    if (left := _left(run, [SAVED[0], SAVED[2], LAST])) is not None:
        return left
    return _WARNED if lab.exported(run) == lab.model(1) else OTHER_MODEL


def _left(run: Path, batches: list[int]) -> str | None:
    """Return None if the folder contains exactly these checkpoints, otherwise a text that lists its contents."""
    names = sorted(path.name for path in run.iterdir() if path.name.startswith((".part", "ep")))
    return None if names == [f"ep0-ba{batch}" for batch in batches] else f"folder contains {names}"


def _at_the_start(ended: Ended, run: Path, reason: str) -> str:
    seen = refusal(ended, str(run), reason)
    return _REFUSED if seen == REFUSED and not list(run.glob("ep*")) else str(seen)


def _no_room(lab: Lab) -> Iterator[str]:
    disk = lab.new()
    with _small_disk(disk) as mounted:
        if not mounted:
            yield SKIPPED
            return
        _fill(disk)
        ended = lab.resume(disk / "run")
        yield _at_the_start(ended, disk / "run", "free")


def _small_files(lab: Lab) -> Iterator[str]:
    run = lab.new() / "run"
    ended = lab.resume(run, hook=partial(_limit_files, 200_000))
    yield _at_the_start(ended, run, "ulimit -f")


def _read_only_from_the_start(lab: Lab) -> Iterator[str]:
    disk = lab.new()
    with _small_disk(disk) as mounted:
        if not mounted:
            yield SKIPPED
            return
        _remount(disk, "ro")
        ended = lab.resume(disk / "run")
        yield _at_the_start(ended, disk / "run", "Read-only")


def _sleep_in_a_batch() -> None:
    """Make the run sleep before it saves the checkpoint of _BATCH. Runs inside the training process."""
    _during(partial(time.sleep, 120), lambda: None)


def _two_runs(kill: bool, lab: Lab) -> Iterator[str]:
    run = lab.new() / "run"
    flags = (lab.config, f"save_folder={run}", f"max_duration={LAST}ba", "autoresume=true")
    first = Running("train.py", flags, 1, _sleep_in_a_batch)
    try:
        deadline = time.monotonic() + 60
        while not (run / f"ep0-ba{SAVED[0]}").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        owner = json.loads((run / ".owner.json").read_bytes())["pid"]
        if not kill:
            ended = lab.resume(run)
            named = owner == first.pid and f"pid {owner}" in ended.text and os.uname().nodename in ended.text
            yield _OWNED if ended.code == 2 and named else f"exit code {ended.code}"
    finally:
        first.kill()
    if kill:
        ended = lab.resume(run)
        seen = lab.outcome(ended, run)
        yield _TAKEN if seen == SAME and f"pid {owner}" in ended.text else seen


_SAVES: Mapping[str, tuple[Hook, str, bool]] = {
    "full disk before a save": (lambda disk: partial(_full, disk), "free", True),
    "disk full during a save": (lambda disk: partial(_full_meanwhile, disk), "free", True),
    "disk read-only during a save": (lambda disk: partial(_read_only, disk), "Read-only", True),
    "file-size limit during a save": (lambda disk: _limited, "a file of this size", False),
}
"""For each fault: the hook, the error text that the output must contain, and whether the fault needs a mounted disk."""

CASES: Mapping[str, Case] = {
    case.name: case
    for case in (
        Case("two runs in one save folder", _OWNED, partial(_two_runs, False)),
        Case("lock of a killed run", _TAKEN, partial(_two_runs, True)),
        Case("no space for a checkpoint at the start", _REFUSED, _no_room),
        Case("read-only disk at the start", _REFUSED, _read_only_from_the_start),
        Case("file-size limit at the start", _REFUSED, _small_files),
        *(
            Case(f"{name}, on_save_error: {policy}", expected, partial(_saving, policy, *what))
            for name, what in _SAVES.items()
            for policy, expected in {"stop": _STOPPED, "warn": _WARNED}.items()
        ),
    )
}
