"""A run's plan, which defines how many rows of each stream are in each batch. The plan consists of segments, and a
segment consists of pieces.

A run whose config never changes has one segment. If a run is resumed with different later stages, a new segment begins
at the checkpoint's batch. The new segment starts after the rows that each stream has contributed so far, so that
earlier batches do not change and no row is drawn twice.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from data.mixing.interleaving import Interleaving, Stage


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A range of batches in which each stream's share of the tokens changes linearly with the number of tokens."""

    stage: int
    n_batches: int | None
    """None: the piece lasts until the end of the run."""
    start: tuple[float, ...]
    end: tuple[float, ...]
    """[S] shares of the rows at the start and at the end of the piece."""
    tokens_per_row: tuple[float, ...]
    """[S] mean tokens per row of each stream when the plan was made. For checkpoints of version 2, all values are 1, so
    that shares change linearly with the number of rows."""
    lr_start: float
    lr_end: float

    def stage_of(self, global_batch_size: int) -> Stage:
        """The piece as a Stage, with its length in rows."""
        n_rows = math.inf if self.n_batches is None else float(self.n_batches * global_batch_size)
        return Stage(n_rows, np.array(self.start), np.array(self.end), np.array(self.tokens_per_row))

    def is_of_version_2(self) -> bool:
        """Whether all streams of the piece have 1 token per row, as in checkpoints of version 2."""
        drawn = zip(self.start, self.end, self.tokens_per_row, strict=True)
        return all(mean == 1 for start, end, mean in drawn if start or end)

    def shares(self, part: float) -> tuple[float, ...]:
        """[S] shares of the rows after the fraction `part` (0 to 1) of the piece's batches."""
        return tuple(self.stage_of(1).shares(part).tolist())

    def lr_scale(self, part: float) -> float:
        """The factor of the learning rate after the fraction `part` of the piece's batches."""
        return self.lr_start + part * (self.lr_end - self.lr_start)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The part of the plan that begins at batch `first_batch`."""

    first_batch: int
    first_row: int
    global_batch_size: int
    counts: tuple[int, ...]
    """[S] number of rows drawn from each stream before this segment."""
    stages: tuple[dict[str, Any], ...]
    """The stages as they are written in the config."""
    ends: tuple[int | None, ...]
    """For each stage, the number of the batch after its last batch."""
    pieces: tuple[Piece, ...]
    made: str = ""
    """The time at which a run was resumed with this plan; empty for the first segment."""

    @cached_property
    def interleaving(self) -> Interleaving:
        return Interleaving([piece.stage_of(self.global_batch_size) for piece in self.pieces], self.counts)

    def row(self, batch: int) -> int:
        """The number of the batch's first row in the run."""
        return self.first_row + (batch - self.first_batch) * self.global_batch_size

    def batch(self, row: int) -> int:
        return self.first_batch + (row - self.first_row) // self.global_batch_size

    def at(self, batch: int) -> tuple[Piece, float]:
        """The piece that contains the batch, and the fraction (0 to 1) of the piece that precedes the batch."""
        first = self.first_batch
        for piece in self.pieces:
            if piece.n_batches is None or batch < first + piece.n_batches:
                return piece, (batch - first) / piece.n_batches if piece.n_batches else 0.0
            first += piece.n_batches
        return self.pieces[-1], 1.0

    def counts_before(self, batch: int) -> np.ndarray:
        """Number of rows drawn from each stream before the batch; int64 [S]."""
        return self.interleaving.counts(self.row(batch))

    def planned_before(self, batch: int) -> np.ndarray:
        """The planned number of rows of each stream before the batch, which is the integral of the stream's share;
        float64 [S]."""
        return self.interleaving.planned(self.row(batch))

    def shares(self, batch: int) -> np.ndarray:
        """Each stream's planned share of the batch's rows; float64 [S]."""
        first, size = self.row(batch), self.global_batch_size
        merge = self.interleaving
        return np.maximum(merge.planned(first + size) - merge.planned(first), 0.0) / size

    def largest_shares(self) -> list[float]:
        """[S] the largest share of the rows that each stream has in any piece."""
        return np.max([(piece.start, piece.end) for piece in self.pieces], axis=(0, 1)).tolist()

    def rest(self, batch: int) -> list[Piece]:
        """The pieces that begin at this batch or later. If the batch is inside a piece, the first returned piece is the
        rest of this piece. If the batch is after the last piece, a piece with the final shares is returned."""
        rest: list[Piece] = []
        first = self.first_batch
        for piece in self.pieces:
            length = piece.n_batches
            if length is None or first + length > batch:
                before, part = self.at(max(batch, first))
                assert before is piece
                left = None if length is None else first + length - max(batch, first)
                rest.append(replace(piece, n_batches=left, start=piece.shares(part), lr_start=piece.lr_scale(part)))
            first += length or 0
        last = self.pieces[-1]
        return rest or [replace(last, n_batches=None, start=last.end, lr_start=last.lr_end)]

    def widened(self, tokens_per_row: tuple[float, ...]) -> "Segment":
        """This segment with additional streams, from which it draws no rows. `tokens_per_row` are the mean tokens per
        row of the additional streams."""
        none = (0.0,) * len(tokens_per_row)
        pieces = tuple(
            replace(
                piece,
                start=piece.start + none,
                end=piece.end + none,
                tokens_per_row=piece.tokens_per_row + tokens_per_row,
            )
            for piece in self.pieces
        )
        return replace(self, counts=self.counts + (0,) * len(tokens_per_row), pieces=pieces)


@dataclass(frozen=True)
class Timeline:
    """The segments of a run, in order."""

    segments: tuple[Segment, ...]

    @property
    def last(self) -> Segment:
        return self.segments[-1]

    def segment(self, batch: int) -> Segment:
        """The segment that contains the batch."""
        return next((segment for segment in reversed(self.segments) if segment.first_batch <= batch), self.segments[0])

    def at(self, batch: int) -> tuple[Piece, float]:
        """See Segment.at."""
        return self.segment(batch).at(batch)

    def stages(self) -> list[tuple[str, int, int | None]]:
        """`(name, first batch, batch after the last)` of each stage."""
        ends = self.last.ends
        return [
            (str(stage["name"]), 0 if i == 0 else int(ends[i - 1] or 0), ends[i])
            for i, stage in enumerate(self.last.stages)
        ]

    def stage(self, batch: int) -> str:
        """Name of the batch's stage. For batches after the last stage, the name of the last stage; "" if there are no
        stages."""
        segment = self.segment(batch)
        return segment.stages[segment.at(batch)[0].stage]["name"]

    def start_of(self, number: int) -> tuple[Piece, float]:
        """The start of the stage with this number, as a piece and the fraction of the piece that precedes the start."""
        return self.at(self.stages()[number][1])

    def end_of(self, number: int) -> tuple[Piece, float]:
        """The end of the stage with this number, as a piece and the fraction of the piece that precedes the end."""
        _, first, end = self.stages()[number]
        if end is None:
            return self.last.pieces[-1], 1.0
        piece, part = self.at(max(end - 1, first))
        return piece, min(part + 1 / piece.n_batches, 1.0) if piece.n_batches else 1.0
