"""The order of one stream's rows, as a pure function of the seed and the position."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from data.base.hashing import splitmix64
from data.mixing.permutation import make_key, permute, unpermute

WINDOW_SHARDS = 8
"""Number of shards in a window. The rows of a window are shuffled together, and all shards of a window must be local at
the same time."""

_SHARD_ORDER, _ROW_ORDER = 1, 2  # constants that make the keys for shards and for rows differ


class StreamOrder:
    """The order of one stream's rows. Each epoch is a permutation of all rows.

    In an epoch, the order of the shards depends on a key, and rows are permuted inside windows of consecutive shards,
    so that each shard is read in one window only. Without shuffling, the rows of every epoch are in file order. Only
    integer arithmetic modulo 2^64 is used, so the order is the same on every machine and for every version of NumPy.
    """

    def __init__(
        self, shard_sizes: np.ndarray, seed: int, stream: int = 0, *, shuffle: bool = True, window: int = WINDOW_SHARDS
    ) -> None:
        self.shard_sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.n_rows = int(self.shard_sizes.sum())
        self.seed, self.stream, self.shuffle, self.window = seed, stream, shuffle, window
        self._tables: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        if self.n_rows < 1:
            raise ValueError(f"a stream of {self.n_rows} rows has no order")

    def rows(self, k: np.ndarray) -> np.ndarray:
        """Ids (indices in the files) of the rows numbered k in the stream, where rows are numbered from 0 over all
        epochs; int64, with the shape of k."""
        return shuffled([(self, np.asarray(k, dtype=np.int64))])[0]

    def draws(self, row_N: np.ndarray, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The inverse of `rows`: all draws of these rows among the first `stop` draws of the stream. For each draw, the
        index in row_N and the number k of the draw; int64 [M] each, sorted by k."""
        row_N = np.asarray(row_N, dtype=np.int64)
        n_epochs = -(-stop // self.n_rows)
        k_EN = np.array([self._draws_in(epoch, row_N) for epoch in range(n_epochs)], dtype=np.int64)
        k = k_EN.reshape(-1)
        index = np.tile(np.arange(len(row_N)), n_epochs)
        chosen = np.flatnonzero(k < stop)
        chosen = chosen[np.argsort(k[chosen], kind="stable")]
        return index[chosen], k[chosen]

    def _draws_in(self, epoch: int, row_N: np.ndarray) -> np.ndarray:
        """For each row, the number k of the draw that returns the row in this epoch."""
        first = epoch * self.n_rows
        if not self.shuffle:
            return first + row_N
        starts, first_rows, order = self._table(epoch)
        shard_N = np.searchsorted(np.cumsum(self.shard_sizes), row_N, side="right")
        place_of_shard = np.empty_like(order)
        place_of_shard[order] = np.arange(len(order))
        place_N = place_of_shard[shard_N]
        place_N = starts[place_N] + (row_N - first_rows[place_N])
        # All rows of a window stay in the window, so the window of the position after the permutation is the same as
        # the window of the position before.
        start_N, size_N, key_N = self.windows(first + place_N)
        return first + start_N + unpermute(place_N - start_N, size_N, key_N)

    def windows(self, k_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each row: the position in the epoch at which the row's window starts, the number of rows in the window,
        and the window's key."""
        start_N, size_N, key_N = np.empty_like(k_N), np.empty_like(k_N), np.empty(k_N.shape, dtype=np.uint64)
        for number, chosen, places in self._epochs(k_N):
            starts = self._table(number)[0]
            window = (np.searchsorted(starts, places, side="right") - 1) // self.window
            start_N[chosen] = starts[window * self.window]
            size_N[chosen] = starts[np.minimum((window + 1) * self.window, len(starts) - 1)] - start_N[chosen]
            key = make_key(self.seed, _ROW_ORDER, self.stream, number)
            key_N[chosen] = splitmix64(key ^ window.astype(np.uint64))
        return start_N, size_N, key_N

    def ids(self, k_N: np.ndarray, place_N: np.ndarray) -> np.ndarray:
        """The ids of the rows at these positions, counted in the order of the shards in the rows' epochs."""
        out = np.empty_like(k_N)
        for number, chosen, _ in self._epochs(k_N):
            starts, first_rows, _ = self._table(number)
            shard = np.searchsorted(starts, place_N[chosen], side="right") - 1
            out[chosen] = first_rows[shard] + (place_N[chosen] - starts[shard])
        return out

    def shards(self, start: int, stop: int) -> np.ndarray:
        """The shards whose windows contain the stream's rows start..stop-1; int64. These shards must be local when the
        rows are read."""
        if stop - start >= 2 * self.n_rows:
            return np.arange(len(self.shard_sizes))
        parts = [self._table(number)[2][first:last] for number, first, last in self._begun(start, stop)]
        return np.unique(np.concatenate([np.empty(0, dtype=np.int64), *parts]))

    def n_shards(self, start: int, stop: int) -> int:
        """Number of the shards returned by `shards`, each counted once per epoch."""
        return sum(last - first for _, first, last in self._begun(start, stop))

    def most_shards(self, n_rows: int) -> int:
        """The largest possible number of shards in the windows of n_rows consecutive rows."""
        if not n_rows:
            return 0
        least = int(np.sort(self.shard_sizes)[: self._window].sum())
        # The rows may cover the first and last windows only partly, and the last window of an epoch may be short.
        n_windows = math.ceil(n_rows / least) + 1 + (len(self.shard_sizes) % self._window > 0)
        return min(n_windows * self._window, len(self.shard_sizes))

    @property
    def _window(self) -> int:
        return self.window if self.shuffle else 1

    def _begun(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """For each epoch that contains some of these rows: its number, and the range of shards, in the epoch's order,
        that the windows of these rows cover."""
        window, n_shards = self._window, len(self.shard_sizes)
        for number in range(start // self.n_rows, -(-stop // self.n_rows)):
            first, last = (min(max(k - number * self.n_rows, 0), self.n_rows) for k in (start, stop))
            if first < last == self.n_rows and not first:
                yield number, 0, n_shards
            elif first < last:
                starts = self._table(number)[0]
                low, high = (int(np.searchsorted(starts, place, side="right")) - 1 for place in (first, last - 1))
                yield number, low // window * window, min((high // window + 1) * window, n_shards)

    def _epochs(self, k_N: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """For each epoch: its number, a mask that selects its rows, and the positions of these rows in the epoch."""
        epochs, places = np.divmod(k_N, self.n_rows)
        for number in np.unique(epochs).tolist():
            chosen = epochs == number
            yield number, chosen, places[chosen]

    def _table(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For the shards in the epoch's order: the position at which each shard starts (the last entry is the number of
        rows), the id of its first row, and its number."""
        if number not in self._tables:
            if len(self._tables) == 2:  # a batch needs at most two epochs, unless the stream is tiny
                self._tables.clear()
            key = make_key(self.seed, _SHARD_ORDER, self.stream, number)
            shards = np.arange(len(self.shard_sizes), dtype=np.uint64)
            order = np.argsort(splitmix64(key ^ shards), kind="stable") if self.shuffle else shards.astype(np.int64)
            starts = np.concatenate(([0], np.cumsum(self.shard_sizes[order])))
            self._tables[number] = starts, (np.cumsum(self.shard_sizes) - self.shard_sizes)[order], order
        return self._tables[number]


def shuffled(wanted: Sequence[tuple[StreamOrder, np.ndarray]]) -> list[np.ndarray]:
    """For each pair `(order, k)` in `wanted`: the ids of the rows that have the numbers k in this stream. All streams
    are permuted in one call, because each call has a fixed cost."""
    if not wanted or not wanted[0][0].shuffle:
        return [k_N % order.n_rows for order, k_N in wanted]
    start_N, size_N, key_N = (
        np.concatenate(parts) for parts in zip(*(order.windows(k_N.ravel()) for order, k_N in wanted), strict=True)
    )
    i_N = np.concatenate([k_N.ravel() % order.n_rows for order, k_N in wanted]) - start_N
    place_N = start_N + permute(i_N, size_N, key_N)
    cuts = np.cumsum([k_N.size for _, k_N in wanted])[:-1]
    return [
        order.ids(k_N.ravel(), places).reshape(k_N.shape)
        for (order, k_N), places in zip(wanted, np.split(place_N, cuts), strict=True)
    ]
