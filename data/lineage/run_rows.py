"""The rows of each batch of a run, and the batches that draw a row, computed from a checkpoint's data state."""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from data.lineage.batches import Batches
from data.mixing.mixture import Mixture
from data.mixing.resume import DataState
from data.mixing.segments import Timeline
from data.mixing.stream_order import StreamOrder

_BLOCK = 1 << 20
"""Number of rows that are counted in one call."""


class RunRows:
    """The rows that a run draws in all of its segments. Batches are numbered from 0."""

    def __init__(self, state: DataState, shard_sizes: Mapping[str, np.ndarray]) -> None:
        """`state` contains the streams, and the segments that determine which rows are drawn. `shard_sizes` contains
        the number of rows in each shard, for each stream in `state`."""
        self.names = list(state.streams)
        self._timeline = Timeline(state.segments)
        self._orders = [
            StreamOrder(shard_sizes[name], state.seed or 0, number, shuffle=state.shuffle)
            for number, name in enumerate(self.names)
        ]
        self._counts = lru_cache(maxsize=4096)(self._counts_before)

    def n_rows(self, stream: int) -> int:
        return self._orders[stream].n_rows

    def rows(self, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """The stream (index in `names`) and the row id of each row of the batch, in the order of the global batch;
        int64 each."""
        segment = self._timeline.segment(batch)
        first = segment.row(batch)
        return Mixture(self._orders, segment.interleaving).rows(first, first + segment.global_batch_size)

    def counts(self, batch: int) -> np.ndarray:
        """Number of rows drawn from each stream before the batch; int64 [S]."""
        return self._counts(batch)

    def _counts_before(self, batch: int) -> np.ndarray:
        return self._timeline.segment(batch).counts_before(batch)

    def batches_of(self, stream: int, row_N: np.ndarray, batches: Batches) -> tuple[np.ndarray, np.ndarray]:
        """All draws of these rows of a stream in the given batches. For each draw, the index in row_N and the batch;
        int64 [M] each, sorted by batch."""
        if not batches.ranges or not len(row_N):
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        stop = int(self.counts(batches.ranges[-1][1])[stream])
        index, k = self._orders[stream].draws(row_N, stop)
        batch = self._batches_of_draws(stream, k)
        chosen = batches.contain(batch)
        return index[chosen], batch[chosen]

    def _batches_of_draws(self, stream: int, k_N: np.ndarray) -> np.ndarray:
        """The batch of each of the stream's draws, where draws are numbered from 0 over the whole run."""
        segments = self._timeline.segments
        first_k = np.array([segment.counts[stream] for segment in segments])
        number_N = np.searchsorted(first_k, k_N, side="right") - 1
        batch_N = np.empty_like(k_N)
        for number in np.unique(number_N).tolist():
            chosen, segment = number_N == number, segments[number]
            k = k_N[chosen]
            position = segment.interleaving.positions(np.full(len(k), stream), k)
            batch_N[chosen] = segment.first_batch + (position - segment.first_row) // segment.global_batch_size
        return batch_N

    def n_draws(self, batches: Batches) -> np.ndarray:
        """Number of rows drawn from each stream in the batches; int64 [S]."""
        total = np.zeros(len(self.names), dtype=np.int64)
        for first, stop in batches.ranges:
            total += self.counts(stop) - self.counts(first)
        return total

    def times_drawn(self, stream: int, batches: Batches) -> np.ndarray:
        """For each row of the stream, how often it is drawn in the batches; int64."""
        order = self._orders[stream]
        times_R = np.zeros(order.n_rows, dtype=np.int64)
        for first, stop in batches.ranges:
            start, end = int(self.counts(first)[stream]), int(self.counts(stop)[stream])
            whole = range(-(-start // order.n_rows), end // order.n_rows)
            if len(whole):
                times_R += len(whole)
                self._add(times_R, order, start, whole.start * order.n_rows)
                self._add(times_R, order, whole.stop * order.n_rows, end)
            else:
                self._add(times_R, order, start, end)
        return times_R

    @staticmethod
    def _add(times_R: np.ndarray, order: StreamOrder, start: int, end: int) -> None:
        for first in range(start, end, _BLOCK):
            np.add.at(times_R, order.rows(np.arange(first, min(first + _BLOCK, end))), 1)
