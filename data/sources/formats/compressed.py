"""The decompressed bytes of a file. gzip and zstd files are decompressed block by block while they are read."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

from data.sources.formats.names import COMPRESSED
from data.sources.remote.remote_file import InputPath, RemoteFile, open_file

_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
"""Magic bytes of compressed files. They are not valid UTF-8, so no text file begins with them."""
_SKIPPABLE = b"\x2a\x4d\x18"
"""Bytes 1 to 3 of a skippable zstd frame (RFC 8878, 3.1.2), which contains no data. Files written by pzstd begin with
such a frame."""


class RawFile:
    """A local or remote file. Each block that is read is also passed to a callback. Opening and reading raise OSError,
    or DataError for a remote file."""

    closed = False

    def __init__(
        self, path: InputPath, seen: Callable[[bytes], None] | None = None, start: int = 0, stop: int | None = None
    ) -> None:
        """Only the bytes from `start` to `stop - 1` are read."""
        self._file, self._seen = open_file(path, stop), seen
        self.n_read = 0
        self._left = None if stop is None else max(stop - start, 0)
        self.compression = _compression(self._file.peek(4)[:4], path) if start == 0 else None
        self._file.seek(start)

    def read(self, size: int = -1) -> bytes:
        if self._left is not None:
            size = self._left if size < 0 else min(size, self._left)
        block = self._file.read(size)
        self.n_read += len(block)
        if self._left is not None:
            self._left -= len(block)
        if self._seen is not None:
            self._seen(block)
        return block

    def close(self) -> None:
        self._file.close()


class PlainFile:
    """The decompressed bytes of a RawFile. Consecutive gzip members or zstd frames are concatenated. close() closes the
    RawFile too."""

    def __init__(self, raw: RawFile) -> None:
        self._raw = raw
        self._plain: Any = raw
        if raw.compression is not None:
            import pyarrow as pa

            self._plain = pa.CompressedInputStream(pa.PythonFile(raw, "r"), raw.compression)

    def read(self, size: int) -> bytes:
        """Raises OSError. Its errno is None if the compressed content is corrupt or truncated."""
        return self._plain.read(size)

    def close(self) -> None:
        # Arrow raises OSError if a stream is closed before its end.
        with contextlib.suppress(OSError):
            self._plain.close()
        self._raw.close()


def is_compressed(path: InputPath) -> bool:
    """Whether the file is compressed. The beginning of a remote file is read only once per process."""
    return _remote_is_compressed(path) if isinstance(path, RemoteFile) else _is_compressed(path)


def _is_compressed(path: InputPath) -> bool:
    with open_file(path, exact=True) as file:
        return _compression(file.read(4), path) is not None


_remote_is_compressed = functools.cache(_is_compressed)


def _compression(head: bytes, path: InputPath) -> str | None:
    for beginning, name in _MAGIC.items():
        if head.startswith(beginning):
            return name
    skippable = head[1:] == _SKIPPABLE and 0x50 <= head[0] <= 0x5F
    return "zstd" if skippable and path.suffix.lower() in COMPRESSED else None
