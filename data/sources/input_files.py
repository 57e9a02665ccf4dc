"""The record of input files in cache_dir: their hashes and formats. An unchanged file is not read again.

A file counts as changed if its size, modification time or inode has changed. One process per node reads new files. The
other processes wait for a file lock (not in a collective operation), and then read the hashes from the record.
"""

import functools
import json
import os
import re
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import xxhash

from data.base.console import is_first, notice
from data.base.errors import DataError, os_errors_named
from data.base.locks import HEAD_START, exclusive_unless
from data.base.sizes import progress_bar
from data.sources.formats.content import BLOCK_BYTES, InputFile, changed, state_of

RECORD = ".input-files.json"
"""File in cache_dir that contains `version` and, in `files`, an entry for each file and format. Its lock file is in the
same folder."""
VERSION = 1
"""Version of the record's format. A record of another version is not used."""
SETTLED = 3.0
"""In seconds. File systems store times in steps of up to 2 s (FAT). If less than this time has passed since a file was
changed, the file may change again without a new modification time."""
LARGE = 1 << 30
"""In bytes. If there is more new data than this, local rank 0 reads the data and the other ranks wait, because
launchers show only the progress bar of local rank 0."""
DELAY = 2.0
"""Seconds before a progress bar or a message about waiting appears."""
SAVE_EVERY = 30.0
"""Seconds between two saves of the record. A killed run loses at most the hashes computed since the last save, and the
hash of the file that is being read."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """The result of opening a file."""

    reader: str | None = None
    """The key of the file's reader; None if the file is empty."""
    left_out: str | None = None
    """The part of each row that is skipped; None: nothing is skipped."""


@dataclass(frozen=True, kw_only=True)
class _Entry:
    state: list[int]
    """Size, modification time in ns, inode."""
    xxh3: str
    begun: float
    ended: float
    """The times at which reading the file began and ended (Unix time)."""
    reader: str | None
    left_out: str | None


class InputFiles:
    """The record of input files in a cache_dir. If the folder is not writable, every process reads the files itself."""

    def __init__(self, cache_dir: str, *, rehash: bool = False) -> None:
        """rehash: ignore entries written before this object was created."""
        self._file, self._rehash, self._since = Path(cache_dir) / RECORD, rehash, time.time()
        self._entries = self._load()
        self._seen: dict[Path, tuple[int, ...]] = {}
        """State of each file when it was opened. An error is raised if the file changes before it is hashed."""

    def __getstate__(self) -> dict[str, Any]:
        # Tasks on other machines get the hashes of their own source, and need no entries of other sources.
        return {**vars(self), "_entries": {}}

    def opened(self, path: Path, format: str) -> Opened | None:
        """The recorded result of opening the file; None if the file must be read."""
        state = self._seen[path] = _state(path)
        entry = self._entry(format, path, state)
        return Opened(reader=entry.reader, left_out=entry.left_out) if entry is not None else None

    def hashed(self, files: Mapping[Path, Opened], format: str) -> dict[Path, InputFile]:
        """The files with their hashes. Only files that are not in the record are read. Raises DataError for a file that
        cannot be read."""
        hashed = {path: self._hashed(path, format) for path in files}
        if None in hashed.values():
            if not is_first() and _size(hashed) > LARGE:
                time.sleep(HEAD_START)
            with ExitStack() as stack:
                with suppress(OSError):
                    notice_at = time.monotonic() + DELAY
                    lock = exclusive_unless(self._file.with_suffix(".lock"), lambda: self._waiting(notice_at))
                    stack.enter_context(lock)
                self._entries |= self._load()
                hashed = {path: self._hashed(path, format) for path in files}
                stack.callback(self._save)
                saved = time.monotonic()
                with progress_bar("Reading input files", _size(hashed), delay=DELAY, disable=not is_first()) as bar:
                    for path in [path for path, file in hashed.items() if file is None]:
                        hashed[path] = self._read(path, format, files[path], bar)
                        if time.monotonic() >= saved + SAVE_EVERY:
                            self._save()
                            saved = time.monotonic()
        return {path: file for path, file in hashed.items() if file is not None}

    def _hashed(self, path: Path, format: str) -> InputFile | None:
        state = self._state_as_opened(path)
        entry = self._entry(format, path, state)
        return InputFile(path, entry.state[0], entry.xxh3, state) if entry is not None else None

    def _entry(self, format: str, path: Path, state: tuple[int, ...]) -> _Entry | None:
        """The file's entry; None if the file has changed, or may have changed, since the entry was written."""
        entry = self._entries.get(_key(format, path))
        if entry is None or entry.state != _compared(state):
            return None
        settled = entry.state[1] / 1e9 + SETTLED < entry.begun
        # An entry that another rank wrote since this process started is always used, so that all ranks agree.
        return entry if entry.ended >= self._since or (settled and not self._rehash) else None

    def _read(self, path: Path, format: str, opened: Opened, bar: Any) -> InputFile:
        state, begun = self._state_as_opened(path), time.time()
        digest, size = xxhash.xxh3_128(), 0
        with os_errors_named(path, as_error=DataError), path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
                size += len(block)
                bar.update(len(block))
        self._entries[_key(format, path)] = _Entry(
            state=_compared(state), xxh3=digest.hexdigest(), begun=begun, ended=time.time(), **asdict(opened)
        )
        return InputFile(path, size, digest.hexdigest(), state)

    def _state_as_opened(self, path: Path) -> tuple[int, ...]:
        """The file's state. Raises DataError if the file has changed since it was opened, because the reader that was
        chosen for it may no longer be the right one."""
        state = _state(path)
        if self._seen.get(path, state) != state:
            raise DataError(changed(str(path)))
        return state

    def _waiting(self, notice_at: float) -> bool:
        """Called while another process holds the lock. Returns False, so that this process never gives up waiting."""
        if time.monotonic() > notice_at:
            notice(f"Waiting for another process to read the input files ({self._file})")
        return False

    def _load(self) -> dict[str, _Entry]:
        try:
            return dict(_parse(self._file, state_of(self._file)))
        except (OSError, ValueError, RecursionError):  # there is no record, or it is not JSON
            return {}

    def _save(self) -> None:
        """Write the record, without entries for deleted files. If this fails, the files are read again in the next
        run."""
        self._entries = {key: entry for key, entry in self._entries.items() if not _is_deleted(key)}
        files = {key: asdict(entry) for key, entry in self._entries.items()}
        with suppress(OSError), tempfile.TemporaryDirectory(dir=self._file.parent, prefix=RECORD) as folder:
            part = Path(folder) / RECORD
            part.write_text(json.dumps({"version": VERSION, "files": files}))
            part.replace(self._file)


@functools.lru_cache(maxsize=1)
def _parse(record: Path, state: tuple[int, ...]) -> dict[str, _Entry]:
    """The valid entries of the record. The record is parsed only once for all streams, unless it changes."""
    match json.loads(record.read_bytes()):
        case {"version": version, "files": dict(files)} if version == VERSION:
            return {key: _Entry(**entry) for key, entry in files.items() if _is_valid(entry)}
    return {}


def _is_valid(entry: Any) -> bool:
    match entry:
        case {
            "state": [int(), int(), int()],
            "xxh3": str(xxh3),
            "begun": int() | float(),
            "ended": int() | float(),
            "reader": None | str(),
            "left_out": None | str(),
        }:
            return len(entry) == len(fields(_Entry)) and re.fullmatch("[0-9a-f]{32}", xxh3) is not None
    return False


def _is_deleted(key: str) -> bool:
    """Whether the file was deleted. False if the file's folder is missing too, because the folder may not be mounted,
    or may exist only on another node."""
    path = Path(key.partition(":")[2])
    return path.parent.is_dir() and not os.path.lexists(path)


def _key(format: str, path: Path) -> str:
    return f"{format}:{os.path.realpath(path)}"


def _state(path: Path) -> tuple[int, ...]:
    with os_errors_named(path, as_error=DataError):
        return state_of(path)


def _compared(state: tuple[int, ...]) -> list[int]:
    """Size, modification time and inode. The device is left out because its number differs between nodes. ctime is left
    out because new hard links and changed permissions change it."""
    _, inode, size, mtime_ns, _ = state
    return [size, mtime_ns, inode]


def _size(hashed: Mapping[Path, InputFile | None]) -> int:
    """Total size in bytes of the files that must be read."""
    return sum(_state(path)[2] for path, file in hashed.items() if file is None)
