"""Who owns a save folder: a lock file with the owner's host and process, and a heartbeat for owners on other machines.

Only one run may write checkpoints into a folder. On one machine the process itself tells whether an owner is alive; of
another machine (or container) only the lock file's modification time can be seen, which the owner renews. Times of two
machines are never compared: a watcher sees that time change, or not.
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
"""In a save folder while a run owns it, and after that run was killed."""
FLOCK = ".owner.lock"
"""Its flock is held while the lock file is read and replaced. It stays: who deletes a file with a flock lets two in."""
_PART = ".part-owner-"

BEAT = 10.0
"""Seconds between two heartbeats: rare enough for a shared file system, and six are in STALE."""
STALE = 60.0
"""Seconds without a heartbeat after which an owner on another machine counts as dead."""
POLL = 1.0
"""Seconds between two looks at another owner's heartbeat."""
SETTLE = 1.0
"""Seconds between replacing the lock file and looking whose it is, where no flock keeps two runs apart: longer than a
run needs between its own look and its own file."""
_PATIENCE = 10.0
"""Seconds that another process may hold the flock, which takes milliseconds, before this one does without."""
_MAX_BYTES = 2**16
"""Of a lock file; ours have less than a thousandth of it, but for a long run_name."""
_NO_FLOCK = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What a lock file says."""

    token: str
    host: str
    pid: int
    started: float
    """When the process started (see data/loading/processes.py): a later process with its pid is another."""
    boot_id: str
    pid_namespace: str
    """Empty, as boot_id, where the system has none."""
    run_name: str
    since: str
    """For people to read."""

    @property
    def machine(self) -> tuple[str, str, str]:
        """Within it a pid is one process. Containers may share a hostname, and have a pid namespace each."""
        return self.host, self.boot_id, self.pid_namespace

    def __str__(self) -> str:
        return f"run {shown(self.run_name)} (host {shown(self.host)}, pid {self.pid}, since {shown(self.since)})"


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A lock file at one moment: equal to that of another moment when no heartbeat was between them."""

    record: _Record | None
    """None where the file is damaged."""
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
        """Raises DataError when another run has taken the folder over, or the lock file is gone."""
        try:
            found = self._beat()
        except FileNotFoundError:
            raise DataError(
                f"save_folder {self._folder} is no longer this run's: {LOCK_FILE} was deleted, so another run may "
                "write there too: see that none does, and start again with autoresume=true"
            ) from None
        except OSError:
            return  # whose it is cannot be known; what is written next reports such a disk
        if found is not None:
            raise DataError(
                f"save_folder {self._folder} was taken over by {found}, as is done after {STALE:.0f} s without a "
                "heartbeat of this run: this run stops and saves nothing more; to go on with it, stop the other and "
                "start again with autoresume=true, or write another run_name"
            )

    def _beat_until_stopped(self) -> None:
        while not self._stopped.wait(BEAT):
            # A disk that is full, read-only or away for a while: the next beat may succeed, and `check` comes before
            # each save.
            with suppress(OSError):
                self._beat()

    def _beat(self) -> _Record | None:
        """Renews the lock file's time, and the file where it is damaged; or gives the other run that it names."""
        with self._one_beat:
            with _opened(self._folder) as file:
                record = _parse(os.read(file, _MAX_BYTES))
                if record == self._record:
                    os.utime(file)  # of this file, whatever may have replaced it meanwhile
                    return None
            if record is None and not self._stopped.is_set():
                _write(self._folder, self._record)
            return record

    def _begin(self) -> None:
        self._thread.start()

    def _release(self) -> None:
        """Deletes the lock file if it is this run's. A forked child has neither the thread nor the folder."""
        if os.getpid() != self._process:
            return
        self._stopped.set()
        self._thread.join(POLL)  # no longer: it may be waiting for a disk
        # A folder that was deleted must not be made again for its flock.
        if self._folder.is_dir():
            with suppress(OSError), _one_at_a_time(self._folder):
                found = _look(self._folder)
                if found is not None and found.record == self._record:
                    (self._folder / LOCK_FILE).unlink()


@dataclass(frozen=True, kw_only=True)
class FoundOwner:
    """Who owns a save folder, or has left its lock file there."""

    name: str
    """Its run, host and process, for people to read."""
    alive: bool | None
    """None where only its heartbeat can be seen, because it is on another machine."""


def owner_of(folder: Path) -> FoundOwner | None:
    """The owner as the lock file says it; None without one. Waits for nothing, changes nothing. Raises OSError."""
    found = _look(folder)
    return None if found is None else FoundOwner(name=str(found), alive=_is_alive(found))


def this_owner(run_name: str) -> bytes:
    """What says that this process owns a folder, for one that is not in a file system."""
    return _serialize(_this_process(run_name))


def read_owner(data: bytes) -> FoundOwner:
    """The owner that such bytes name."""
    record = _parse(data)
    found = _Found(record=record, inode=0, mtime_ns=0)
    return FoundOwner(name=str(found), alive=_is_alive(found))


def check_unowned(folder: Path) -> None:
    """Raises ConfigError when a run that is alive on this machine owns the folder. Waits for nothing, changes nothing,
    and passes where it cannot know: see `own` for owners on other machines."""
    try:
        found = _look(folder)
    except OSError:
        return
    if found is not None and _is_alive(found):
        raise _refusal(folder, found)


@contextmanager
def own(folder: Path, run_name: str) -> Iterator[Owner]:
    """The folder (made if need be) is this run's meanwhile. A forked child neither renews nor releases it.

    The lock file of a process of this machine that has ended is taken over at once; that of another machine when its
    heartbeat was not seen to advance: for a beat, and for STALE seconds after its last one. Raises ConfigError when the
    owner is alive, or the folder cannot be written, and DataError when the disk is full.
    """
    record = _this_process(run_name)
    with (
        os_errors_named(folder, "written", key="save_folder"),
        plain_os_errors(f"save_folder {folder}", "name another", needed_for=f"its {LOCK_FILE}", again="start again"),
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
    """Writes the lock file when nobody owns the folder. Raises ConfigError when somebody does."""
    silent: _Found | None = None
    while True:
        with _one_at_a_time(folder) as alone:
            found = _look(folder)
            alive = None if found is None else _is_alive(found)
            taken = False
            if found is None:
                taken = _write(folder, record, new=True)
            elif found.record == record:
                taken = True  # a network file system made the link and lost its answer
            elif alive is False or (alive is None and found == silent):
                taken = _write(folder, record)
        if taken:
            # Where flock works, this machine's processes come one at a time; other machines' perhaps do not.
            if not alone or silent is not None:
                time.sleep(SETTLE)
            _see_that_it_is_ours(folder, record)
            if found is not None and found.record != record:
                logger.info(f"save_folder {folder}: taken over from {found}, which has ended")
            return
        if found is not None and alive:
            raise _refusal(folder, found)
        if found is not None:
            silent = _watch(folder, found)


def _see_that_it_is_ours(folder: Path, record: _Record) -> None:
    now = _look(folder)
    if now is not None and now.record != record:
        raise _refusal(folder, now)


def _watch(folder: Path, found: _Found) -> _Found | None:
    """Waits until the owner, of whose process nothing can be known here, has missed its heartbeats, and gives what was
    found then; or None when the lock file is gone or another's. Raises ConfigError as soon as the heartbeat advances.
    """
    # At least a beat is watched: that the file is old is said by its file system, or by the other machine's clock.
    seconds = max(STALE - _age(folder, found), 0.0) + BEAT
    notice(
        f"save_folder {folder}: waiting up to {seconds:.0f} s to see whether its owner is alive, {found}, of which "
        "only the heartbeat can be seen here"
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
    """Seconds since the last heartbeat, in [0, STALE], by the clock that sets times of files in this folder."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=_PART) as file:
            os.utime(file.fileno())  # as a heartbeat does: of a network's file system this is the server's time
            now = os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return 0.0
    return min(max((now - found.mtime_ns) / 1e9, 0.0), STALE)


def _refusal(folder: Path, found: _Found) -> ConfigError:
    return ConfigError(
        f"is {folder}, which belongs to {found}, and that run is alive: wait for its end or stop it, or write another "
        "run_name or save_folder",
        key="save_folder",
    )


def _is_alive(found: _Found) -> bool | None:
    """Whether the owner's process is; None where it is not visible from here."""
    record = found.record
    if record is None or record.machine != machine():
        return None
    if not psutil.pid_exists(record.pid):
        return False
    try:
        return start_time(record.pid) == record.started
    except psutil.NoSuchProcess:  # a zombie too
        return False
    except (psutil.Error, OSError):
        return None  # such as another user's, where /proc hides these


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
    """The lock file's descriptor. It is opened anew for each look: network file systems ask the server at opening."""
    file = os.open(folder / LOCK_FILE, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield file
    finally:
        os.close(file)


def _look(folder: Path) -> _Found | None:
    """The lock file as it is now; None where there is none. Raises OSError."""
    try:
        with _opened(folder) as file:
            state = os.fstat(file)
            return _Found(record=_parse(os.read(file, _MAX_BYTES)), inode=state.st_ino, mtime_ns=state.st_mtime_ns)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _write(folder: Path, record: _Record, *, new: bool = False) -> bool:
    """Writes the lock file in one step; `new` only where there is none, else it gives False. Raises OSError."""
    part = folder / f"{_PART}{record.token}"
    try:
        with part.open("wb") as file:
            file.write(_serialize(record))
            file.flush()
            os.fsync(file.fileno())
        if new and not (folder / LOCK_FILE).is_symlink():  # which leads nowhere
            try:
                (folder / LOCK_FILE).hardlink_to(part)  # fails where there is one, on network file systems too
                return True
            except FileExistsError:
                return False
            except OSError:
                pass  # a file system without links
        part.replace(folder / LOCK_FILE)
    finally:
        part.unlink(missing_ok=True)
    return True


def _serialize(record: _Record) -> bytes:
    content = asdict(record)
    return json.dumps({**content, "crc32": _checksum(content)}, indent=2).encode()


_TYPES = {"pid": int, "started": float}
"""Of the fields of a record that are no text."""


def _parse(data: bytes) -> _Record | None:
    """None for what is no intact lock file."""
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
    """Whether others are kept out meanwhile: False where the file system has no flock, or another process keeps it."""
    end = time.monotonic() + _PATIENCE
    with ExitStack() as stack:
        alone = False
        try:
            alone = stack.enter_context(exclusive_unless(folder / FLOCK, lambda: time.monotonic() > end))
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
        yield alone
