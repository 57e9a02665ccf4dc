"""Read and write tensors a few rows at a time: the sources of tensors, and the division of tensors into blocks of
rows."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch

from train.hf.raw_rows import PIECE_BYTES, Piece
from train.models.precision import FORMATS, Precision


class TensorSource(Protocol):
    """A source of tensors: pretrained weights, a checkpoint, or a base with adapters merged into it."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor, by name."""
        ...

    @property
    def files(self) -> Sequence[Path]:
        """The files that the tensors depend on. If these files are unchanged, the tensors are unchanged."""
        ...

    def pieces(self, name: str, dtype: torch.dtype) -> Sequence[Piece] | None:
        """Return the ranges of files that contain the tensor's bytes in this dtype, in order. Return None if the bytes
        must be computed.

        Raises ConfigError if the files cannot be read.
        """
        ...

    def rows(self, name: str, start: int, stop: int, out: torch.Tensor) -> None:
        """Write rows [start, stop) into `out` [stop - start, ...], in the dtype of `out`.

        Raises ConfigError if the rows cannot be read.
        """
        ...


def n_bytes(shape: tuple[int, ...], precision: Precision) -> int:
    return math.prod(shape) * FORMATS[precision].n_bytes


def row_blocks(shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[int, int]]:
    """Yield the range [start, stop) of each block of rows. The blocks are processed one after the other."""
    step = max(1, PIECE_BYTES // (math.prod(shape[1:]) * itemsize))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])
