"""Read rows of a tensor from a file in small chunks, so that no memory is needed apart from the output tensor and one
chunk.

Files are read rather than memory-mapped, because mapped memory would count toward the process's memory use.
"""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

PIECE_BYTES = 1 << 21
"""Maximum size of a chunk in bytes. A chunk of this size fits into the CPU cache, and is large enough to make the
overhead per chunk negligible."""


class Piece(NamedTuple):
    """A contiguous range of values in a file."""

    path: Path
    offset: int
    length: int
    """The length in bytes. `offset` is in bytes too."""


class Scratch(threading.local):
    """Memory that each thread reuses, because allocating memory takes longer than reading the data into it."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._taken = torch.empty(0), memoryview(b"")

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, memoryview]:
        """Return an uninitialized tensor, and its memory as bytes. The memory is reused by the next call in the same
        thread."""
        rows = self._taken[0]
        if rows.shape != shape or rows.dtype != dtype:
            n_bytes = math.prod(shape) * dtype.itemsize
            if len(self._bytes) < n_bytes:
                self._bytes = torch.empty(n_bytes, dtype=torch.uint8)
            data = self._bytes[:n_bytes]
            self._taken = data.view(dtype).view(shape), data.numpy().data
        return self._taken


_scratch = Scratch()


class Readable(Protocol):
    """A file that is open for reading."""

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` with the bytes that begin at `offset`. Raises OSError, or ValueError if the file is too short."""
        ...


class _PlainFile:
    def __init__(self, path: Path, file: FileIO) -> None:
        self._path, self._file = path, file

    def read_into(self, offset: int, out: memoryview) -> None:
        self._file.seek(offset)
        while len(out):
            n_read = self._file.readinto(out)
            if not n_read:
                raise ValueError(f"{self._path.name} is truncated: copy or download it again")
            out = out[n_read:]


@contextmanager
def opened(path: Path) -> Iterator[Readable]:
    """Open a plain file. Raises OSError."""
    with path.open("rb", buffering=0) as file:
        yield _PlainFile(path, file)


def read_rows(file: Readable, offset: int, dtype: torch.dtype, out: torch.Tensor) -> None:
    """Fill `out` [rows, ...] with the values that begin at byte `offset` of the file. dtype: the dtype of the values in
    the file.

    Raises the same errors as `file.read_into`.
    """
    row_bytes = math.prod(out.shape[1:]) * dtype.itemsize
    step = max(1, PIECE_BYTES // max(row_bytes, 1))
    with torch.no_grad():
        if out.dtype == dtype and out.is_contiguous() and out.device.type == "cpu":
            file.read_into(offset, out.detach().view(-1).view(torch.uint8).numpy().data)
            return
        for first in range(0, len(out), step):
            rows = out[first : first + step]
            piece, data = _scratch.take(rows.shape, dtype)
            file.read_into(offset + first * row_bytes, data)
            rows.copy_(piece)
