"""The order of rows as a pure function of (seed, position): nothing is sampled, stored or replayed.

Only integer arithmetic modulo 2^64 is used, so the order is the same on every machine and for every NumPy version.
"""

import numpy as np

WINDOW_SHARDS = 8
"""Shards whose rows are mixed with one another: what has to be at hand at a time."""

_ROUNDS = 6
_SHARD_ORDER, _ROW_ORDER = 1, 2  # what a key is for


def splitmix64(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014), one step from each uint64 of x."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def make_key(seed: int, *parts: int) -> np.uint64:
    """A 64-bit key from integers, different for a different order of them."""
    key = np.zeros(1, dtype=np.uint64)
    for part in (seed, *parts):
        key = splitmix64(key ^ np.uint64(part % 2**64))
    return key[0]


def permute(i: np.ndarray, n: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Where i goes in the keyed permutation of range(n); i < n, all int64, int64, uint64 of one shape.

    A Feistel network on the smallest domain of an even number of bits that holds n, walked until it is back under n.
    """
    half = ((np.frexp((n - 1).astype(np.float64))[1] + 1) // 2).astype(np.uint64)
    out = i.astype(np.uint64)
    walking = np.arange(len(out))
    while len(walking):
        out[walking] = _feistel(out[walking], half[walking], key[walking])
        walking = walking[out[walking] >= n[walking].astype(np.uint64)]
    return out.astype(np.int64)


def _feistel(x: np.ndarray, half: np.ndarray, key: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = x >> half, x & mask
    for number in range(_ROUNDS):
        round_key = splitmix64(key + np.uint64(number))
        left, right = right, left ^ (splitmix64(round_key ^ right) & mask)
    return (left << half) | right


class StreamOrder:
    """The order of one stream's rows, pass after pass, each pass a permutation of all of them.

    In a pass the shards stand in a keyed order, and rows are permuted inside windows of consecutive shards, so that
    each shard is read in one window only. Without shuffle every pass is in the order of the files.
    """

    def __init__(
        self, shard_sizes: np.ndarray, seed: int, stream: int = 0, *, shuffle: bool = True, window: int = WINDOW_SHARDS
    ) -> None:
        self.shard_sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.n_rows = int(self.shard_sizes.sum())
        self.seed, self.stream, self.shuffle, self.window = seed, stream, shuffle, window
        self._tables: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        if self.n_rows < 1:
            raise ValueError(f"a stream of {self.n_rows} rows has no order")

    def rows(self, k: np.ndarray) -> np.ndarray:
        """Ids (places in the files) of the stream's k-th rows, counted from 0 over all passes; int64 of k's shape."""
        passes, places = np.divmod(np.asarray(k, dtype=np.int64), self.n_rows)
        if not self.shuffle:
            return places
        out = np.empty_like(places)
        for number in np.unique(passes).tolist():
            chosen = passes == number
            out[chosen] = self._shuffled(number, places[chosen])
        return out

    def _shuffled(self, number: int, places: np.ndarray) -> np.ndarray:
        starts, first_rows = self._table(number)
        window = (np.searchsorted(starts, places, side="right") - 1) // self.window
        window_start = starts[window * self.window]
        window_end = starts[np.minimum((window + 1) * self.window, len(starts) - 1)]
        key = splitmix64(make_key(self.seed, _ROW_ORDER, self.stream, number) ^ window.astype(np.uint64))
        places = window_start + permute(places - window_start, window_end - window_start, key)
        shard = np.searchsorted(starts, places, side="right") - 1
        return first_rows[shard] + (places - starts[shard])

    def _table(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the shards in the pass's order: the place at which each starts (and the end), and its first row's id."""
        if number not in self._tables:
            if len(self._tables) == 2:  # a batch touches two passes at most, unless the stream is tiny
                self._tables.clear()
            key = make_key(self.seed, _SHARD_ORDER, self.stream, number)
            shards = np.arange(len(self.shard_sizes), dtype=np.uint64)
            order = np.argsort(splitmix64(key ^ shards), kind="stable")
            starts = np.concatenate(([0], np.cumsum(self.shard_sizes[order])))
            self._tables[number] = starts, (np.cumsum(self.shard_sizes) - self.shard_sizes)[order]
        return self._tables[number]
