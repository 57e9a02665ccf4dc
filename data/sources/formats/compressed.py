"""A file's bytes as they are meant: what gzip or zstd compressed is decompressed on the way, block by block."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.sources.formats.names import COMPRESSED

_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
"""What such files begin with, none of which is UTF-8."""
_SKIPPABLE = b"\x2a\x4d\x18"
"""Bytes 1 to 3 of a zstd frame without data, with which the files of pzstd begin (RFC 8878, 3.1.2)."""


class RawFile:
    """A file on disk that reports each block that is read from it. Raises OSError, as all that opens or reads it."""

    closed = False

    def __init__(self, path: Path, seen: Callable[[bytes], None] | None = None) -> None:
        self._file, self._seen = path.open("rb"), seen
        self.n_read = 0
        self.compression = _compression(self._file.peek(4)[:4], path)

    def read(self, size: int = -1) -> bytes:
        block = self._file.read(size)
        self.n_read += len(block)
        if self._seen is not None:
            self._seen(block)
        return block

    def close(self) -> None:
        self._file.close()


class PlainFile:
    """The decompressed bytes of a RawFile; closes it. Members and frames that follow one another are one content."""

    def __init__(self, raw: RawFile) -> None:
        self._raw = raw
        self._plain: Any = raw
        if raw.compression is not None:
            import pyarrow as pa

            self._plain = pa.CompressedInputStream(pa.PythonFile(raw, "r"), raw.compression)

    def read(self, size: int) -> bytes:
        """Raises OSError; without an errno where the compressed content is broken or ends too early."""
        return self._plain.read(size)

    def close(self) -> None:
        # Arrow complains of a stream that is closed before its end.
        with contextlib.suppress(OSError):
            self._plain.close()
        self._raw.close()


def _compression(head: bytes, path: Path) -> str | None:
    for beginning, name in _MAGIC.items():
        if head.startswith(beginning):
            return name
    skippable = head[1:] == _SKIPPABLE and 0x50 <= head[0] <= 0x5F
    return "zstd" if skippable and path.suffix.lower() in COMPRESSED else None
