"""Convert the stages of a config to batches."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from data.base.durations import Clock, parse_duration
from data.base.errors import ConfigError
from data.config.loader import DataLoaderConfig, EpochsOf, StageConfig
from data.mixing.interleaving import Stage
from data.mixing.segments import Piece, Segment
from data.mixing.streams import Streams, epoch_rows


@dataclass(frozen=True, eq=False)
class StageResolver:
    """Converts the stages of a config to batches, for given streams and a given length of the run."""

    config: DataLoaderConfig
    streams: Streams
    clock: Clock

    def first_segment(self) -> Segment:
        """The plan of a run that starts at the beginning. Raises ConfigError for invalid durations."""
        return self._segment(0, 0, [0] * len(self.streams.names), None)

    def next_segment(self, first_row: int, counts: Sequence[int], before: Segment) -> Segment:
        """The plan of the rows that begin with first_row, as a segment that follows the segment `before`. `counts` are
        the numbers of rows drawn from each stream so far. Raises the same errors as `first_segment`."""
        return self._segment(before.batch(first_row), first_row, counts, before)

    def _segment(self, first_batch: int, first_row: int, counts: Sequence[int], before: Segment | None) -> Segment:
        ends = self._ends(first_batch, before)
        return Segment(
            first_batch=first_batch,
            first_row=first_row,
            global_batch_size=self.clock.rows_per_batch,
            counts=tuple(counts),
            stages=tuple(asdict(stage) for stage in self.config.stages) or ({"name": ""},),
            ends=tuple(ends) or (None,),
            pieces=tuple(self._pieces(ends, first_batch, before)),
        )

    def _ends(self, now: int, before: Segment | None) -> list[int | None]:
        ends: list[int | None] = []
        begin = 0
        for number, stage in enumerate(self.config.stages):
            frozen = before.ends[number] if before is not None and number < len(before.ends) else None
            if frozen is not None and frozen <= now:
                # The mix of the last stage in `before` has continued until this batch, and the added stages begin at
                # this batch.
                added = before is not None and number + 1 == len(before.ends) < len(self.config.stages)
                ends.append(now if added else frozen)
            elif stage.duration is None:
                ends.append(None)
            else:
                length = max(self._batches(stage.duration, stage, f"stages[{number}].duration"), 1)
                # The current stage cannot end before the current batch.
                ends.append(max(begin + length, now if begin < now else 0))
            begin = ends[-1] if ends[-1] is not None else begin
        return ends

    def _batches(self, duration: str | EpochsOf, stage: StageConfig, key: str) -> int:
        names = self.streams.names
        if isinstance(duration, str) and parse_duration(duration)[1] != "ep":
            return self.clock.batches(duration)
        if isinstance(duration, EpochsOf):
            epochs, name = duration.ep, duration.of
        elif len(names) > 1:
            raise ConfigError(
                f"{key} is {duration!r}, but with several streams `ep` requires the name of a stream: write {{ep: "
                f"{parse_duration(duration)[0]:g}, of: {names[0]}}}, or use ba, tok or dur"
            )
        else:
            epochs, name = parse_duration(duration)[0], names[0]
        start, end = (np.array(self.streams.row_shares(mix)) for mix in stage.mixes())
        share = float(Stage(1.0, start, end, np.array(self.streams.tokens_per_row)).mean()[names.index(name)])
        if share == 0:
            raise ConfigError(f"{key} is in epochs of stream {name}, but this stream has no share in this stage")
        return math.ceil(round(epochs * self.streams.shapes[name].n_rows / share, 6) / self.clock.rows_per_batch)

    def _pieces(self, ends: Sequence[int | None], first_batch: int, before: Segment | None) -> list[Piece]:
        if not ends:
            share = self._default_shares()
            return [self._piece(0, None, (share, share), (1.0, 1.0))]
        pieces: list[Piece] = []
        begin = 0
        for number, end in enumerate(ends):
            if end is None or end > first_batch:
                n_batches = None if end is None else end - max(begin, first_batch)
                piece = self._piece_of_stage(number, n_batches)
                if begin < first_batch and before is not None:
                    piece = _continued(piece, *before.at(first_batch))
                pieces.append(piece)
            begin = end if end is not None else begin
        if pieces:
            return pieces
        # After the last stage, its final mix continues.
        last = self._piece_of_stage(len(ends) - 1, None)
        return [replace(last, start=last.end, lr_start=last.lr_end)]

    def _piece_of_stage(self, number: int, n_batches: int | None) -> Piece:
        stage = self.config.stages[number]
        start, end = (self.streams.row_shares(mix) for mix in stage.mixes())
        return self._piece(number, n_batches, (start, end), stage.lr_scales())

    def _piece(
        self,
        stage: int,
        n_batches: int | None,
        shares: tuple[tuple[float, ...], tuple[float, ...]],
        lr_scales: tuple[float, float],
    ) -> Piece:
        return Piece(
            stage=stage,
            n_batches=n_batches,
            start=shares[0],
            end=shares[1],
            tokens_per_row=self.streams.tokens_per_row,
            lr_start=lr_scales[0],
            lr_end=lr_scales[1],
        )

    def _default_shares(self) -> tuple[float, ...]:
        """[S] shares of the rows if there are no stages, computed from each stream's `proportion`, or from its
        `choose`, `repeat` or number of rows."""
        configs = self.config.dataset.streams or {}
        proportions = {name: c.proportion for name, c in configs.items() if c.proportion is not None}
        if proportions:
            return self.streams.row_shares(proportions)
        rows = epoch_rows(self.config.dataset, self.streams.shapes)
        return tuple(rows[name] / sum(rows.values()) for name in self.streams.names)


def _continued(piece: Piece, current: Piece, part: float) -> Piece:
    """The rest of a ramp, from the current shares to the final shares in the config."""
    start, lr_start = piece.start, piece.lr_start
    if start != piece.end:
        start = current.shares(part)
    if lr_start != piece.lr_end:
        lr_start = current.lr_scale(part)
    return replace(piece, start=start, lr_start=lr_start)
