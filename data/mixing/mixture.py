"""The order of rows as a pure function of (seed, streams, stages, position): nothing is sampled, stored or replayed.

Interleaving defines the stream of each row, and StreamOrder defines the order of the rows in a stream.
"""

from collections.abc import Sequence

import numpy as np

from data.mixing.interleaving import Interleaving
from data.mixing.segments import Segment
from data.mixing.stream_order import StreamOrder, shuffled

BLOCK_ROWS = 1024
"""Number of rows that are planned in one call."""


class Mixture:
    """The rows of a run: for each position, a stream and one of its rows."""

    def __init__(self, orders: Sequence[StreamOrder], interleaving: Interleaving) -> None:
        self.orders, self.interleaving = orders, interleaving

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The stream and the row id (index in the stream's files) of the run's rows start..stop-1; int64 [N] each."""
        s_N, k_N = self.interleaving.rows(start, stop)
        id_N = np.empty_like(k_N)
        chosen = {stream: s_N == stream for stream in np.unique(s_N).tolist()}
        ids = shuffled([(self.orders[stream], k_N[rows]) for stream, rows in chosen.items()])
        for rows, id_of_rows in zip(chosen.values(), ids, strict=True):
            id_N[rows] = id_of_rows
        return s_N, id_N


class BatchRows:
    """The rows of batches, beginning with the first batch of a segment."""

    def __init__(self, segment: Segment, orders: Sequence[StreamOrder]) -> None:
        self.segment, self.orders = segment, orders
        self._mixture = Mixture(orders, segment.interleaving)
        self._blocks: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def rows(self, batch: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The stream and the row id of the batch's rows start..stop-1; int64 each."""
        size, first_batch = self.segment.global_batch_size, self.segment.first_batch
        if size > BLOCK_ROWS:
            first = self.segment.row(batch)
            return self._mixture.rows(first + start, first + stop)
        # Many small batches are planned in one call, because the time for a call hardly depends on the number of rows.
        n_batches = BLOCK_ROWS // size
        block, place = divmod(batch - first_batch, n_batches)
        if block not in self._blocks:
            if len(self._blocks) == 2:  # the block that is being read, and the next block, for prefetching
                del self._blocks[next(iter(self._blocks))]
            first = self.segment.row(first_batch + block * n_batches)
            self._blocks[block] = self._mixture.rows(first, first + n_batches * size)
        s_N, id_N = self._blocks[block]
        at = place * size
        return s_N[at + start : at + stop], id_N[at + start : at + stop]
