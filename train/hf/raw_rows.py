"""A tensor's rows read from their place in a file in pieces, so that nothing beside `out` is ever large.

Plain reads: what is mapped into memory instead would count as the process's own.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch

PIECE_BYTES = 1 << 20
"""Small enough for a processor's cache: reading, casting and writing a piece then cost little beside the copy."""


TORCH_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""By safetensors' names."""


class Piece(NamedTuple):
    """Where numbers lie one after the other."""

    path: Path
    offset: int
    length: int
    """In bytes."""


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
        buffer = torch.empty(min(step, len(out)) * row_bytes, dtype=torch.uint8)
        for first in range(0, len(out), step):
            rows = out[first : first + step]
            piece = buffer[: len(rows) * row_bytes]
            _fill(piece.numpy().data, file, path)
            rows.copy_(piece.view(dtype).view(rows.shape))


def _fill(view: memoryview, file: Any, path: Path) -> None:
    while len(view):
        n_read = file.readinto(view)
        if not n_read:
            raise ValueError(f"{path.name} ends too early")
        view = view[n_read:]
