"""The rows of each batch of a run, used by the loader, the callbacks and the tables that show the plan.

Stages are converted to batches in stages.py, the rows of a batch are computed in mixture.py, and resume.py continues
from a checkpoint.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.base.durations import Clock
from data.config.loader import DataLoaderConfig
from data.mixing.checks import check_length, check_repeats, check_size, normalized_proportions
from data.mixing.mixture import BatchRows
from data.mixing.resume import DataState, check_past, read_state, resumed
from data.mixing.segments import Piece, Segment, Timeline
from data.mixing.stages import StageResolver
from data.mixing.stream_order import StreamOrder
from data.mixing.streams import Streams, StreamShape


@dataclass(frozen=True, eq=False, kw_only=True)
class Mix:
    """The mix at one point of a run, that is, the share of each stream."""

    rows: np.ndarray
    tokens: np.ndarray
    """[S] each stream's share of the rows, and its share of the tokens, without padding."""
    lr_scale: float


class RowPlan:
    """The rows of a run's batches. A new plan starts at the beginning; `resume` continues from a checkpoint."""

    def __init__(
        self,
        config: DataLoaderConfig,
        streams: Mapping[str, StreamShape],
        clock: Clock,
        *,
        seed: int,
        resuming: bool = False,
    ) -> None:
        """If `resuming` is True, `resume` must be called next. `resume` checks the lengths of the stages and how often
        rows are repeated, so these checks are skipped here.

        Raises ConfigError for stages that cannot be converted to batches or would repeat rows too often, and DataError
        if all streams together have fewer rows than one global batch.
        """
        dataset = config.dataset
        self._resolver = StageResolver(config, Streams(dict(streams), dataset.max_seq_len), clock)
        check_size(self._resolver.streams, self.global_batch_size)
        self.seed = seed if dataset.shuffle_seed is None else dataset.shuffle_seed
        self.notes = normalized_proportions(config)
        """Messages for the user about the plan."""
        self._set(Timeline((self._resolver.first_segment(),)))
        # When a run resumes, its plan after the checkpoint may differ from the plan made here, so the plan made here is
        # not checked.
        if not resuming:
            self.notes += self._check()

    @property
    def global_batch_size(self) -> int:
        return self._resolver.clock.rows_per_batch

    @property
    def names(self) -> list[str]:
        """Names of the streams, in the order of their numbers."""
        return self._resolver.streams.names

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self._timeline.segments

    # Queries about batches

    def rows(self, batch: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The stream (index in `names`) and the row id of the batch's rows start..stop-1; int64 each."""
        return self._batches.rows(batch, start, stop)

    def counts(self, batch: int) -> np.ndarray:
        """Number of rows drawn from each stream before the batch; int64 [S]."""
        return self._timeline.segment(batch).counts_before(batch)

    def planned(self, batch: int) -> np.ndarray:
        """The planned number of rows of each stream before the batch, which is the integral of the stream's share;
        float64 [S]."""
        return self._timeline.segment(batch).planned_before(batch)

    def shares(self, batch: int) -> np.ndarray:
        """Each stream's planned share of the batch's rows; float64 [S]."""
        return self._timeline.segment(batch).shares(batch)

    def token_shares(self, batch: int) -> np.ndarray:
        """[S] planned share of each stream in the batch's tokens, without padding. `proportions` in a config sets these
        shares."""
        return self.of_tokens(self.shares(batch))

    def of_tokens(self, rows: np.ndarray) -> np.ndarray:
        """[S] shares of the tokens for these numbers (or shares) of rows, given each stream's mean tokens per row."""
        return self._resolver.streams.token_shares(rows)

    def lr_scale(self, batch: int) -> float:
        """The factor by which the learning rate is multiplied in the batch."""
        piece, part = self._timeline.at(batch)
        return piece.lr_scale(part)

    # Queries about stages

    def stage(self, batch: int) -> str:
        """Name of the batch's stage. For batches after the last stage, the name of the last stage; "" if there are no
        stages."""
        return self._timeline.stage(batch)

    def stages(self) -> list[tuple[str, int, int | None]]:
        """`(name, first batch, batch after the last)` of each stage."""
        return self._timeline.stages()

    def start_of(self, number: int) -> Mix:
        """The mix at the start of the stage with this number."""
        return self._mix(*self._timeline.start_of(number))

    def end_of(self, number: int) -> Mix:
        """The mix at the end of the stage with this number."""
        return self._mix(*self._timeline.end_of(number))

    def _mix(self, piece: Piece, part: float) -> Mix:
        rows = np.array(piece.shares(part))
        return Mix(rows=rows, tokens=self.of_tokens(rows), lr_scale=piece.lr_scale(part))

    # Queries about shards

    def shards(self, first: int, stop: int) -> dict[str, np.ndarray]:
        """Stream -> the shards whose windows contain the rows of batches first..stop-1."""
        return {name: order.shards(start, end) for name, order, start, end in self._drawn(first, stop)}

    def n_shards(self, first: int, stop: int) -> dict[str, int]:
        """Stream -> number of the shards returned by `shards`, each counted once per epoch of the stream."""
        return {name: order.n_shards(start, end) for name, order, start, end in self._drawn(first, stop)}

    def _drawn(self, first: int, stop: int) -> Iterator[tuple[str, StreamOrder, int, int]]:
        """For each stream, the range of its rows that are in batches first..stop-1, counted over all epochs."""
        starts, ends = (self.counts(max(batch, 0)).tolist() for batch in (first, stop))
        return zip(self.names, self._batches.orders, starts, ends, strict=True)

    def most_shards(self, n_batches: int) -> dict[str, int]:
        """Stream -> the largest number of shards that n_batches consecutive batches can need."""
        rows, n_streams = n_batches * self.global_batch_size, len(self.names)
        largest_S = self._timeline.last.largest_shares()
        # At both ends of the range, the counts differ from the planned numbers by at most 1/2 + share S/2.
        most_S = [min(rows, math.ceil(share * (rows + n_streams) + 1)) if share else 0 for share in largest_S]
        orders = zip(self.names, self._batches.orders, most_S, strict=True)
        return {name: order.most_shards(n_rows) for name, order, n_rows in orders}

    # Checkpoints

    def state(self, rows: int) -> dict[str, str]:
        """The state for a checkpoint after all ranks together have drawn `rows` rows."""
        return self._state(rows).write()

    def resume(self, state: Mapping[str, Any]) -> int:
        """Use the checkpoint's plan up to the checkpoint's position, and the config's plan after this position. Returns
        the number of the next batch.

        Raises ConfigError if the rows before the checkpoint would differ; the message lists the differences.
        """
        saved = read_state(state)
        check_past(saved, self._state(0))
        config, clock = self._resolver.config, self._resolver.clock
        self._resolver = StageResolver(config, self._resolver.streams.continuing(list(saved.streams)), clock)
        timeline, change = resumed(saved, self._resolver)
        self._set(timeline)
        self.notes = self._check()
        if change is not None:
            self.notes.append(change)
        return saved.batch

    def _state(self, rows: int) -> DataState:
        dataset, streams = self._resolver.config.dataset, self._resolver.streams
        return DataState(
            rows=rows,
            max_seq_len=dataset.max_seq_len,
            seed=self.seed if dataset.shuffle else None,
            shuffle=dataset.shuffle,
            streams={name: shape.fingerprint for name, shape in streams.shapes.items()},
            segments=self.segments,
        )

    def _set(self, timeline: Timeline) -> None:
        orders = self._resolver.streams.orders(self.seed, shuffle=self._resolver.config.dataset.shuffle)
        self._timeline, self._batches = timeline, BatchRows(timeline.last, orders)

    def _check(self) -> list[str]:
        """Notes about the last segment. Raises ConfigError for stages that are too long or would repeat rows too
        often."""
        config, clock = self._resolver.config, self._resolver.clock
        last = self._timeline.last
        notes = check_length(config.stages, last, clock.max_batches)
        check_repeats(config.dataset, self._resolver.streams, last, clock)
        return notes
