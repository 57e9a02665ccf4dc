"""Tensors that are read or written a few rows at a time: where they come from, and in what dtype."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch

from train.hf.raw_rows import PIECE_BYTES, Piece
from train.models.precision import FORMATS, Precision


class TensorSource(Protocol):
    """Where tensors to write come from: a checkpoint, or a base with an adapter merged into it."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of every tensor, by name."""
        ...

    @property
    def files(self) -> Sequence[Path]:
        """What the values come from: while these are the same, so are the values."""
        ...

    def pieces(self, name: str, dtype: torch.dtype) -> Sequence[Piece] | None:
        """Where in files the tensor's bytes are, in order, in that dtype; None where they have to be computed.

        Raises ConfigError when they cannot be had.
        """
        ...

    def rows(self, name: str, start: int, stop: int, out: torch.Tensor) -> None:
        """Puts rows [start, stop) into `out` [stop - start, ...], in whatever dtype that has.

        Raises ConfigError when they cannot be had.
        """
        ...


def n_bytes(shape: tuple[int, ...], precision: Precision) -> int:
    return math.prod(shape) * FORMATS[precision].n_bytes


def row_blocks(shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[int, int]]:
    """[start, stop) of the rows that are held in memory at a time."""
    step = max(1, PIECE_BYTES // (math.prod(shape[1:]) * itemsize))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])
