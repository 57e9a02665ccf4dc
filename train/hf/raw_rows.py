"""A tensor's rows read from their place in a file in pieces, so that nothing beside `out` is ever large.

Plain reads: what is mapped into memory instead would count as the process's own.
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
"""Small enough for a processor's cache, and large enough that the steps between two pieces cost little beside them."""


class Piece(NamedTuple):
    """Where numbers lie one after the other."""

    path: Path
    offset: int
    length: int
    """In bytes."""


class Scratch(threading.local):
    """Memory of each thread's own, used again and again: new memory costs more than what is done in it."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._taken = torch.empty(0), memoryview(b"")

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, memoryview]:
        """A tensor with any numbers, and its bytes; what the thread took before is overwritten."""
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
    """An open file."""

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fills `out` with the bytes that begin at `offset`. Raises OSError, or ValueError when there are too few."""
        ...


class _PlainFile:
    def __init__(self, path: Path, file: FileIO) -> None:
        self._path, self._file = path, file

    def read_into(self, offset: int, out: memoryview) -> None:
        self._file.seek(offset)
        while len(out):
            n_read = self._file.readinto(out)
            if not n_read:
                raise ValueError(f"{self._path.name} ends too early: it was cut off, bring it here again")
            out = out[n_read:]


@contextmanager
def opened(path: Path) -> Iterator[Readable]:
    """A file as it is. Raises OSError."""
    with path.open("rb", buffering=0) as file:
        yield _PlainFile(path, file)


def read_rows(file: Readable, offset: int, dtype: torch.dtype, out: torch.Tensor) -> None:
    """Fills `out` [rows, ...] with as many numbers of the dtype, which begin at the file's byte `offset`.

    Raises what `file` raises.
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
