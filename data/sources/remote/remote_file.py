"""Files that are read over the network, in ranges of bytes. Local files are paths."""

from abc import ABC, abstractmethod
from pathlib import Path, PurePosixPath
from typing import Any

PART_BYTES = 8 << 20
"""Maximum size of a request. A part is completely received before its bytes are used, so that a slow reader keeps no
connection open, and a failed request can be sent again."""
FIRST_PART_BYTES = 1 << 20
"""Size of the first request of a reader that may not read the whole file."""
KEPT_BYTES = 1 << 16
"""Size of the part of a file that is kept while the file is opened, because several checks read it."""


class RemoteFile(ABC):
    """A file in its current version. Equal objects have equal content. Can be pickled."""

    n_bytes: int

    @property
    @abstractmethod
    def url(self) -> str: ...

    @property
    @abstractmethod
    def digest(self) -> str:
        """A hash or another identification of the content, which does not depend on the location."""

    @abstractmethod
    def fetch(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop - 1`. Raises DataError if they cannot be read or the file has changed."""

    def keep(self, *, end: bool = False) -> None:
        """Fetch the head of the file, or its end, and keep it until `forget` is called."""
        start = max(self.n_bytes - KEPT_BYTES, 0) if end else 0
        if self.n_bytes:
            vars(self)["kept"] = start, self.fetch(start, min(start + KEPT_BYTES, self.n_bytes))

    def forget(self) -> None:
        vars(self).pop("kept", None)

    @property
    def name(self) -> str:
        return PurePosixPath(self.url).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.url).suffix

    def __str__(self) -> str:
        return self.url


InputPath = Path | RemoteFile


class RemoteReader:
    """Reads a remote file as an open binary file is read. Can be passed to pyarrow."""

    closed = False
    mode = "rb"

    def __init__(self, file: RemoteFile, stop: int | None = None) -> None:
        """`stop` is the end of the range that is read from the first position to the last, if it is known."""
        self._file, self._at = file, 0
        self._stop = file.n_bytes if stop is None else min(stop, file.n_bytes)
        self._part = FIRST_PART_BYTES if stop is None else PART_BYTES
        self._held, self._held_at = b"", 0

    def read(self, size: int = -1) -> bytes:
        """As many bytes as requested, unless the file ends."""
        end = self._stop if size is None or size < 0 else min(self._at + size, self._stop)
        parts: list[bytes] = []
        while self._at < end:
            if not self._held_at <= self._at < self._held_at + len(self._held):
                self._receive(end)
            first = self._at - self._held_at
            parts.append(self._held[first : end - self._held_at])
            self._at += len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def peek(self, size: int) -> bytes:
        block = self.read(size)
        self._at -= len(block)
        return block

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._file.n_bytes)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        self._held = b""

    def __enter__(self) -> "RemoteReader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def size(self) -> int:
        return self._file.n_bytes

    def _is_kept(self) -> bool:
        """Use the part of the file that is kept, if it contains the position."""
        start, content = vars(self._file).get("kept", (0, b""))
        if not start <= self._at < start + len(content):
            return False
        self._held_at, self._held = start, content
        return True

    def _receive(self, end: int) -> None:
        """Receive the next part, which is at least the requested bytes up to `end`, within the maximum size."""
        file, at = self._file, self._at
        if self._is_kept():
            return
        stop = min(max(at + self._part, end), at + PART_BYTES, self._stop)
        self._held, self._held_at = b"", at  # the earlier part is released first
        self._held = file.fetch(at, stop)
        self._part = min(2 * self._part, PART_BYTES)


class ExactReader(RemoteReader):
    """A reader that requests only the bytes that are read, for readers that skip most of the file."""

    def _receive(self, end: int) -> None:
        if not self._is_kept():
            self._held, self._held_at = b"", self._at
            self._held = self._file.fetch(self._at, end)


def open_file(path: InputPath, stop: int | None = None, *, exact: bool = False) -> Any:
    """An open binary file. If the file is remote, bytes after `stop` are not requested. With `exact`, only the bytes
    that are read are requested."""
    if isinstance(path, Path):
        return path.open("rb")
    return ExactReader(path) if exact else RemoteReader(path, stop)


def size_of(path: InputPath) -> int:
    """Size in bytes. Raises OSError for a local file that cannot be accessed."""
    return path.stat().st_size if isinstance(path, Path) else path.n_bytes
