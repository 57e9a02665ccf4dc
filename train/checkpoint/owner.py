"""Ownership of a save folder: a lock file that contains the owner's host and process, and a heartbeat for other
machines.

Only one run may write checkpoints into a folder. On the same machine, the owner's process shows whether the run is
alive. From another machine (or container), only the lock file's modification time is visible, which the owner updates
regularly. The clocks of two machines are never compared: a waiting run only checks whether the modification time
changes.
"""

import errno
import json
import os
import tempfile
import threading
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

import psutil

from data.base.console import logger, notice
from data.base.errors import ConfigError, DataError, os_errors_named, plain_os_errors
from data.base.locks import exclusive_unless
from data.base.paths import shown
from data.loading.processes import machine, start_time

LOCK_FILE = ".owner.json"
"""The lock file. It exists in a save folder while a run owns the folder, and remains if the run is killed."""
FLOCK = ".owner.lock"
"""A file on which an flock is held while the lock file is read and replaced. It is never deleted; otherwise, two
processes could each lock a different file with this name."""
_PART = ".part-owner-"

BEAT = 10.0
"""Seconds between two heartbeats. The interval is long enough that heartbeats do not slow down a shared file system.
STALE is six times as long."""
STALE = 60.0
"""Seconds without a heartbeat after which an owner on another machine is considered dead."""
POLL = 1.0
"""Seconds between two checks of another owner's heartbeat."""
SETTLE = 1.0
"""Seconds between replacing the lock file and checking that no other run has replaced it in the meantime. Used only if
no flock excludes other runs. This time is longer than the time that a run needs between reading the lock file and
writing its own lock file."""
_PATIENCE = 10.0
"""Seconds to wait for the flock before continuing without it. Other processes hold the flock only for milliseconds."""
_MAX_BYTES = 2**16
"""Maximum number of bytes that are read from a lock file. Lock files are about a thousand times smaller, unless
run_name is very long."""
_NO_FLOCK = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@dataclass(frozen=True, kw_only=True)
class _Record:
    """The content of a lock file."""

    token: str
    host: str
    pid: int
    started: float
    """The time when the process started (see data/loading/processes.py). Distinguishes the process from a later process
    with the same pid."""
    boot_id: str
    pid_namespace: str
    """The pid namespace of the process. Both this field and boot_id are empty if the system does not provide them."""
    run_name: str
    since: str
    """The time when the run took ownership, as human-readable text."""

    @property
    def machine(self) -> tuple[str, str, str]:
        """Identify the scope in which pids are unique. Containers may share a hostname, but each has its own pid
        namespace."""
        return self.host, self.boot_id, self.pid_namespace

    def __str__(self) -> str:
        return f"run {shown(self.run_name)} (host {shown(self.host)}, pid {self.pid}, since {shown(self.since)})"


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A lock file at the time when it was read. Two instances are equal if there was no heartbeat between the two
    reads."""

    record: _Record | None
    """None if the file is damaged."""
    inode: int
    mtime_ns: int

    def __str__(self) -> str:
        return f"an unknown run ({LOCK_FILE} is damaged)" if self.record is None else str(self.record)


class Owner:
    """A run that owns its save folder (see `own`)."""

    def __init__(self, folder: Path, record: _Record) -> None:
        self._folder, self._record = folder, record
        self._stopped, self._one_beat = threading.Event(), threading.Lock()
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._beat_until_stopped, name="owner-heartbeat", daemon=True)

    def check(self) -> None:
        """Raise DataError if another run has taken over the folder, or the lock file was deleted."""
        try:
            found = self._beat()
        except FileNotFoundError:
            raise DataError(
                f"save_folder {self._folder} no longer belongs to this run: {LOCK_FILE} was deleted, so another run "
                "may also write to the folder: make sure that no other run uses the folder, and start again with "
                "autoresume=true"
            ) from None
        except OSError:
            return  # the owner cannot be determined; the next write to this disk reports the error
        if found is not None:
            raise DataError(
                f"save_folder {self._folder} was taken over by {found}, because this run sent no heartbeat for "
                f"{STALE:.0f} s: this run stops and saves no more checkpoints; to continue this run, stop the other "
                "run and start again with autoresume=true, or set another run_name"
            )

    def _beat_until_stopped(self) -> None:
        while not self._stopped.wait(BEAT):
            # A disk may be temporarily full, read-only or unavailable. The next heartbeat may succeed, and each save
            # calls `check` first.
            with suppress(OSError):
                self._beat()

    def _beat(self) -> _Record | None:
        """Update the lock file's modification time, or rewrite the file if it is damaged. If the file contains the
        record of another run, return this record; otherwise, return None."""
        with self._one_beat:
            with _opened(self._folder) as file:
                record = _parse(os.read(file, _MAX_BYTES))
                if record == self._record:
                    os.utime(file)  # updates the open file, even if it has been replaced in the meantime
                    return None
            if record is None and not self._stopped.is_set():
                _write(self._folder, self._record)
            return record

    def _begin(self) -> None:
        self._thread.start()

    def _release(self) -> None:
        """Delete the lock file if it belongs to this run. Does nothing in a forked child process, which does not own
        the folder."""
        if os.getpid() != self._process:
            return
        self._stopped.set()
        self._thread.join(POLL)  # use a timeout, because the thread may be waiting for a disk
        # If the folder was deleted, acquiring the flock would create the folder again.
        if self._folder.is_dir():
            with suppress(OSError), _one_at_a_time(self._folder):
                found = _look(self._folder)
                if found is not None and found.record == self._record:
                    (self._folder / LOCK_FILE).unlink()


@dataclass(frozen=True, kw_only=True)
class FoundOwner:
    """The run that is recorded in a save folder's lock file. The run may have ended without deleting the lock file."""

    name: str
    """The run, host and process, as human-readable text."""
    alive: bool | None
    """Whether the process is running. None if the process is on another machine, because only its heartbeat is visible
    from this machine."""


def owner_of(folder: Path) -> FoundOwner | None:
    """Return the owner that is recorded in the lock file, or None if there is no lock file. Does not wait, and writes
    nothing. Raises OSError."""
    found = _look(folder)
    return None if found is None else FoundOwner(name=str(found), alive=_is_alive(found))


def this_owner(run_name: str) -> bytes:
    """Return a record of this process as the owner, for folders in an object store."""
    return _serialize(_this_process(run_name))


def read_owner(data: bytes) -> FoundOwner:
    """Return the owner that a record from `this_owner` describes."""
    record = _parse(data)
    found = _Found(record=record, inode=0, mtime_ns=0)
    return FoundOwner(name=str(found), alive=_is_alive(found))


def check_unowned(folder: Path) -> None:
    """Raise ConfigError if a running process on this machine owns the folder. Does not wait, and writes nothing. Raises
    no error if it is unknown whether the owner is running: `own` handles owners on other machines."""
    try:
        found = _look(folder)
    except OSError:
        return
    if found is not None and _is_alive(found):
        raise _refusal(folder, found)


@contextmanager
def own(folder: Path, run_name: str) -> Iterator[Owner]:
    """Own the folder for the duration of the context. The folder is created if necessary. Forked child processes do not
    send heartbeats and do not release the folder.

    If the owner in the lock file was a process on this machine that has ended, the folder is taken over immediately. If
    the owner is a process on another machine, the folder is taken over if there is no new heartbeat for BEAT seconds
    and the last heartbeat is at least STALE seconds old. Raises ConfigError if the owner is alive or the folder is not
    writable, and DataError if the disk is full.
    """
    record = _this_process(run_name)
    with (
        os_errors_named(folder, "written", key="save_folder"),
        plain_os_errors(
            f"save_folder {folder}", "specify another save_folder", needed_for=f"its {LOCK_FILE}", again="start again"
        ),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        _take(folder, record)
    owner = Owner(folder, record)
    owner._begin()
    try:
        yield owner
    finally:
        owner._release()


def _take(folder: Path, record: _Record) -> None:
    """Write the lock file if the folder has no owner; otherwise, raise ConfigError."""
    silent: _Found | None = None
    while True:
        with _one_at_a_time(folder) as alone:
            found = _look(folder)
            alive = None if found is None else _is_alive(found)
            taken = False
            if found is None:
                taken = _write(folder, record, new=True)
            elif found.record == record:
                taken = True  # an earlier attempt succeeded, but the response of the network file system was lost
            elif alive is False or (alive is None and found == silent):
                taken = _write(folder, record)
        if taken:
            # An flock excludes other processes on this machine, but may not exclude processes on other machines.
            if not alone or silent is not None:
                time.sleep(SETTLE)
            _check_is_ours(folder, record)
            if found is not None and found.record != record:
                logger.info(f"save_folder {folder}: taken over from {found}, which has ended")
            return
        if found is not None and alive:
            raise _refusal(folder, found)
        if found is not None:
            silent = _watch(folder, found)


def _check_is_ours(folder: Path, record: _Record) -> None:
    now = _look(folder)
    if now is not None and now.record != record:
        raise _refusal(folder, now)


def _watch(folder: Path, found: _Found) -> _Found | None:
    """Wait until the owner, whose process is not visible from this machine, has missed its heartbeats. Return `found`,
    or None if the lock file was deleted or replaced by another run. Raises ConfigError as soon as there is a heartbeat.
    """
    # Wait for at least one heartbeat interval, because the file's age depends on the clock of its file system or of the
    # other machine.
    seconds = max(STALE - _age(folder, found), 0.0) + BEAT
    notice(
        f"save_folder {folder}: waiting up to {seconds:.0f} s to see whether its owner is alive: {found}. Only the "
        "owner's heartbeat is visible from this machine"
    )
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(POLL, left))
        now = _look(folder)
        if now is None or (now.record is not None and now.record != found.record):
            return None
        if (now.inode, now.mtime_ns) != (found.inode, found.mtime_ns):
            raise _refusal(folder, now)
    return found


def _age(folder: Path, found: _Found) -> float:
    """Return the seconds since the last heartbeat, limited to [0, STALE], measured with the clock that sets file times
    in this folder."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=_PART) as file:
            # As with heartbeats, the time is read from the clock of the file system, which may be the clock of a
            # server.
            os.utime(file.fileno())
            now = os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return 0.0
    return min(max((now - found.mtime_ns) / 1e9, 0.0), STALE)


def _refusal(folder: Path, found: _Found) -> ConfigError:
    return ConfigError(
        f"is {folder}, which belongs to {found}, and that run is alive: wait until it ends, stop it, or set another "
        "run_name or save_folder",
        key="save_folder",
    )


def _is_alive(found: _Found) -> bool | None:
    """Whether the owner's process is running; None if the process is not visible from this machine."""
    record = found.record
    if record is None or record.machine != machine():
        return None
    if not psutil.pid_exists(record.pid):
        return False
    try:
        return start_time(record.pid) == record.started
    except psutil.NoSuchProcess:  # also raised for a zombie process
        return False
    except (psutil.Error, OSError):
        return None  # for example if /proc hides other users' processes


def _this_process(run_name: str) -> _Record:
    host, boot_id, namespace = machine()
    return _Record(
        token=uuid.uuid4().hex,
        host=host,
        pid=os.getpid(),
        started=start_time(os.getpid()),
        boot_id=boot_id,
        pid_namespace=namespace,
        run_name=run_name,
        since=datetime.now(UTC).isoformat(sep=" ", timespec="seconds"),
    )


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """Yield the descriptor of the open lock file. Each check opens the file again, because network file systems query
    the server only when a file is opened."""
    file = os.open(folder / LOCK_FILE, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield file
    finally:
        os.close(file)


def _look(folder: Path) -> _Found | None:
    """Read the lock file. Return None if it does not exist. Raises OSError."""
    try:
        with _opened(folder) as file:
            state = os.fstat(file)
            return _Found(record=_parse(os.read(file, _MAX_BYTES)), inode=state.st_ino, mtime_ns=state.st_mtime_ns)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _write(folder: Path, record: _Record, *, new: bool = False) -> bool:
    """Write the lock file atomically, and return whether it was written. With `new`, an existing lock file is kept.
    Raises OSError."""
    part = folder / f"{_PART}{record.token}"
    try:
        with part.open("wb") as file:
            file.write(_serialize(record))
            file.flush()
            os.fsync(file.fileno())
        if new and not (folder / LOCK_FILE).is_symlink():  # a dangling symlink is replaced below
            try:
                (folder / LOCK_FILE).hardlink_to(part)  # fails if the file exists, also on network file systems
                return True
            except FileExistsError:
                return False
            except OSError:
                pass  # the file system has no hard links
        part.replace(folder / LOCK_FILE)
    finally:
        part.unlink(missing_ok=True)
    return True


def _serialize(record: _Record) -> bytes:
    content = asdict(record)
    return json.dumps({**content, "crc32": _checksum(content)}, indent=2).encode()


_TYPES = {"pid": int, "started": float}
"""Types of the record's fields that are not strings."""


def _parse(data: bytes) -> _Record | None:
    """Return the record in a lock file, or None if the file is damaged."""
    try:
        content = json.loads(data)
        intact = content.pop("crc32") == _checksum(content) and 0 < content["pid"] < 2**31
        intact = intact and all(type(content[field.name]) is _TYPES.get(field.name, str) for field in fields(_Record))
        return _Record(**content) if intact else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _checksum(content: dict[str, object]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[bool]:
    """Hold the flock, and yield True. Yields False without holding the flock if the file system does not support flock,
    or if another process does not release it in time."""
    end = time.monotonic() + _PATIENCE
    with ExitStack() as stack:
        alone = False
        try:
            alone = stack.enter_context(exclusive_unless(folder / FLOCK, lambda: time.monotonic() > end))
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
        yield alone
