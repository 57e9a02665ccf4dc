"""The record of input files in cache_dir: their hashes and formats. A file that has not changed is not read again.

A file has changed when its size, its time of change or its inode has. One process of a node reads new files; the others
wait for a file lock, not in a collective, and then take the hashes from the record.
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
"""In cache_dir: `version`, and in `files` an entry for each file and format. Its lock is beside it."""
VERSION = 1
"""Of the record's format. A record of another version is not used."""
SETTLED = 3.0
"""Seconds. File systems count time in steps of up to 2 s (FAT): a file that was read so soon after a change may have
been changed once more without another time of change."""
LARGE = 1 << 30
"""Bytes: with more of new files the other ranks let local rank 0 read, as launchers show only its progress bar."""
DELAY = 2.0
"""Seconds before a progress bar or a message about waiting appears."""
SAVE_EVERY = 30.0
"""Seconds between two saves: a killed run loses the hashes of that time, and of the file that it was reading."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What opening a file found."""

    reader: str | None = None
    """The key of its reader; None when it is empty."""
    left_out: str | None = None
    """The part of each row that is not read; None: all is read."""


@dataclass(frozen=True, kw_only=True)
class _Entry:
    state: list[int]
    """Size, time of change in ns, inode."""
    xxh3: str
    begun: float
    ended: float
    """When it was read (Unix time)."""
    reader: str | None
    left_out: str | None


class InputFiles:
    """The record of a cache_dir. Where that cannot be written, every process reads for itself."""

    def __init__(self, cache_dir: str, *, rehash: bool = False) -> None:
        """rehash: entries from before now are not used."""
        self._file, self._rehash, self._since = Path(cache_dir) / RECORD, rehash, time.time()
        self._entries = self._load()
        self._seen: dict[Path, tuple[int, ...]] = {}
        """State of each file when it was opened: it must be the same when the file is hashed."""

    def opened(self, path: Path, format: str) -> Opened | None:
        """What opening the file found when it was read; None when it has to be read."""
        state = self._seen[path] = _state(path)
        entry = self._entry(format, path, state)
        return Opened(reader=entry.reader, left_out=entry.left_out) if entry is not None else None

    def hashed(self, files: Mapping[Path, Opened], format: str) -> dict[Path, InputFile]:
        """The files with their hashes; those that are not in the record are read. Raises DataError for one that cannot
        be."""
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
        """The file's entry, unless the file has changed since or may have."""
        entry = self._entries.get(_key(format, path))
        if entry is None or entry.state != _compared(state):
            return None
        settled = entry.state[1] / 1e9 + SETTLED < entry.begun
        # What another rank has read since this process started is always used: all ranks take the same hash.
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
        """Raises DataError when the file was changed since: its reader may be wrong for its content now."""
        state = _state(path)
        if self._seen.get(path, state) != state:
            raise DataError(changed(str(path)))
        return state

    def _waiting(self, notice_at: float) -> bool:
        """Called while another process holds the lock; whether to give up."""
        if time.monotonic() > notice_at:
            notice(f"Waiting for another process that reads the input files ({self._file})")
        return False

    def _load(self) -> dict[str, _Entry]:
        try:
            return dict(_parse(self._file, state_of(self._file)))
        except (OSError, ValueError, RecursionError):  # there is none, or it is no JSON
            return {}

    def _save(self) -> None:
        """Without deleted files. Where the record cannot be written, the files are read again the next time."""
        self._entries = {key: entry for key, entry in self._entries.items() if not _is_deleted(key)}
        files = {key: asdict(entry) for key, entry in self._entries.items()}
        with suppress(OSError), tempfile.TemporaryDirectory(dir=self._file.parent, prefix=RECORD) as folder:
            part = Path(folder) / RECORD
            part.write_text(json.dumps({"version": VERSION, "files": files}))
            part.replace(self._file)


@functools.lru_cache(maxsize=1)
def _parse(record: Path, state: tuple[int, ...]) -> dict[str, _Entry]:
    """The valid entries. Parsed once for all streams, until the record changes."""
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
    """Not where its folder is missing too: that may be on a disk that another node has, or that is not mounted now."""
    path = Path(key.partition(":")[2])
    return path.parent.is_dir() and not os.path.lexists(path)


def _key(format: str, path: Path) -> str:
    return f"{format}:{os.path.realpath(path)}"


def _state(path: Path) -> tuple[int, ...]:
    with os_errors_named(path, as_error=DataError):
        return state_of(path)


def _compared(state: tuple[int, ...]) -> list[int]:
    """Size, time of change and inode: not the device, whose number differs between nodes, nor ctime, which a new hard
    link or other permissions change."""
    _, inode, size, mtime_ns, _ = state
    return [size, mtime_ns, inode]


def _size(hashed: Mapping[Path, InputFile | None]) -> int:
    """Bytes of the files that have to be read."""
    return sum(_state(path)[2] for path, file in hashed.items() if file is None)
