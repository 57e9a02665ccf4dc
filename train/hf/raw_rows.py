"""A tensor's rows read from their place in a file in pieces, so that nothing beside `out` is ever large.

Plain reads: what is mapped into memory instead would count as the process's own.
"""

import math
import threading
from pathlib import Path
from typing import Any, NamedTuple

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


def read_rows(path: Path, offset: int, dtype: torch.dtype, out: torch.Tensor) -> None:
    """Fills `out` with as many numbers of the dtype, which begin at the file's byte `offset`.

    Raises OSError, and ValueError when the file ends before.
    """
    row_bytes = math.prod(out.shape[1:]) * dtype.itemsize
    step = max(1, PIECE_BYTES // row_bytes)
    with path.open("rb", buffering=0) as file, torch.no_grad():
        file.seek(offset)
        if out.dtype == dtype and out.is_contiguous() and out.device.type == "cpu":
            _fill(out.detach().view(-1).view(torch.uint8).numpy().data, file, path)
            return
        for first in range(0, len(out), step):
            rows = out[first : first + step]
            piece, data = _scratch.take(rows.shape, dtype)
            _fill(data, file, path)
            rows.copy_(piece)


def _fill(view: memoryview, file: Any, path: Path) -> None:
    while len(view):
        n_read = file.readinto(view)
        if not n_read:
            raise ValueError(f"{path.name} ends too early: it was cut off, bring it here again")
        view = view[n_read:]
