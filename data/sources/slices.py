"""Slices: stretches of a source that are prepared independently of each other."""

from collections.abc import Iterable
from dataclasses import dataclass

MAX_SLICES = 8192
"""Approximate maximum number of slices, so that a source of several terabytes is not cut into millions of slices."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Consecutive records of one file."""

    file: int
    """Index of the file in the source's `inputs`."""
    size: int
    """Size in the unit of the source."""
    start: int = 0
    """The first byte (files of lines), row group (Parquet) or sample (MDS)."""
    stop: int | None = None
    """The end of this range, which is not included; None: the end of the file."""
    rows: tuple[int, int] | None = None
    """The rows that `split` selects, counted from 0, if it selects rows."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The pieces that one task prepares. Slices depend only on the source and on the requested size."""

    number: int
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """Size in the unit of the source."""
        return sum(piece.size for piece in self.pieces)


def size_of_slices(n_bytes: int, total: int) -> int:
    """The size of slices in bytes for a source of `total` bytes: `n_bytes`, or more for a large source."""
    return max(n_bytes, -(-total // MAX_SLICES))


def grouped(pieces: Iterable[Piece], size: int) -> list[Slice]:
    """Slices of consecutive pieces. Each slice except the last one has at least `size` units."""
    slices: list[Slice] = []
    held: list[Piece] = []
    n_held = 0
    for piece in pieces:
        held.append(piece)
        n_held += piece.size
        if n_held >= size:
            slices.append(Slice(number=len(slices), pieces=tuple(held)))
            held, n_held = [], 0
    if held:
        slices.append(Slice(number=len(slices), pieces=tuple(held)))
    return slices
