"""What was found in input files, recorded in cache_dir: a file that has not changed since is not read again.

A file has changed when its size, its time of change or its inode has. One process of a node reads what is new; the
others wait for a file lock, not in a collective, and then find it in the record.
"""

import functools
import json
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash
from tqdm import tqdm

from data.base.console import is_first, notice
from data.base.errors import DataError, os_errors_named
from data.base.locks import HEAD_START, exclusive_unless
from data.sources.formats.content import BLOCK_BYTES, InputFile, changed, state_of

RECORD = ".input-files.json"
"""In cache_dir: an object with an entry for each file and format that it was read as. Beside it lies its lock."""
SETTLED = 3.0
"""Seconds. File systems count time in steps of up to 2 s (FAT): a file that was read so soon after a change may have
been changed once more without another time of change."""
LARGE = 1 << 30
"""Bytes of new files of which local rank 0 is let to read first, because launchers show that rank's progress alone."""
DELAY = 2.0
"""Seconds after which it is shown what takes long."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What opening a file found."""

    reader: str | None = None
    """The key of its reader; None when it is empty."""
    left_out: str | None = None
    """What of each row is not read; None: nothing."""


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
        """rehash: only what some process reads from now on counts."""
        self._file, self._rehash, self._since = Path(cache_dir) / RECORD, rehash, time.time()
        self._entries = self._load()
        self._seen: dict[Path, tuple[int, ...]] = {}
        """State of the files when they were opened, of which the entry will speak."""

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
                with _bar(_size(hashed)) as bar:
                    for path in [path for path, file in hashed.items() if file is None]:
                        hashed[path] = self._read(path, format, files[path], bar)
        return {path: file for path, file in hashed.items() if file is not None}

    def _hashed(self, path: Path, format: str) -> InputFile | None:
        state = _state(path)
        entry = self._entry(format, path, state)
        return InputFile(path, entry.state[0], entry.xxh3, state) if entry is not None else None

    def _entry(self, format: str, path: Path, state: tuple[int, ...]) -> _Entry | None:
        """The file's entry, where that holds for the file as it is."""
        entry = self._entries.get(_key(format, path))
        if entry is None or entry.state != _compared(state):
            return None
        settled = entry.state[1] / 1e9 + SETTLED < entry.begun
        # What another rank has read meanwhile counts in any case: all ranks take the same hash.
        return entry if entry.ended >= self._since or (settled and not self._rehash) else None

    def _read(self, path: Path, format: str, opened: Opened, bar: Any) -> InputFile:
        state, begun = _state(path), time.time()
        if self._seen.get(path, state) != state:
            raise DataError(changed(str(path)))
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

    def _waiting(self, notice_at: float) -> bool:
        """Called while another process holds the lock; whether to give up."""
        if time.monotonic() > notice_at:
            notice(f"Waiting for another process that reads the input files ({self._file})")
        return False

    def _load(self) -> dict[str, _Entry]:
        try:
            return dict(_parse(self._file, state_of(self._file)))
        except (OSError, ValueError, AttributeError, TypeError):  # there is none, or it is not ours
            return {}

    def _save(self) -> None:
        """Without the files that are gone. Where it cannot be written they are read again the next time."""
        kept = {key: asdict(entry) for key, entry in self._entries.items() if os.path.lexists(key.partition(":")[2])}
        part = self._file.with_suffix(f".{os.getpid()}")
        with suppress(OSError):
            part.write_text(json.dumps(kept))
            part.replace(self._file)


@functools.lru_cache(maxsize=1)
def _parse(record: Path, state: tuple[int, ...]) -> dict[str, _Entry]:
    """Once for all streams, as long as the record stays as it is."""
    return {key: _Entry(**entry) for key, entry in json.loads(record.read_bytes()).items()}


def _key(format: str, path: Path) -> str:
    return f"{format}:{os.path.realpath(path)}"


def _state(path: Path) -> tuple[int, ...]:
    with os_errors_named(path, as_error=DataError):
        return state_of(path)


def _compared(state: tuple[int, ...]) -> list[int]:
    """What is compared of it: not the device, whose number differs between nodes, nor ctime, which a new hard link or
    other permissions change."""
    _, inode, size, mtime_ns, _ = state
    return [size, mtime_ns, inode]


def _bar(n_bytes: int) -> Any:
    hidden = not is_first()
    return tqdm(desc="Reading input files", total=n_bytes, unit="B", unit_scale=True, delay=DELAY, disable=hidden)


def _size(hashed: Mapping[Path, InputFile | None]) -> int:
    """Bytes of the files that have to be read."""
    return sum(_state(path)[2] for path, file in hashed.items() if file is None)
