"""The order of rows as a pure function of (seed, streams, stages, position): nothing is sampled, stored or replayed.

Interleaving says which stream each row comes from, StreamOrder in which order a stream gives its rows.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
    each shard is read in one window only. Without shuffle every pass is in the order of the files. Only integer
    arithmetic modulo 2^64 is used, so the order is the same on every machine and for every NumPy version.
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
        """Ids (places in the files) of the stream's k-th rows, counted from 0 over all passes; int64 of k's shape."""
        return shuffled([(self, np.asarray(k, dtype=np.int64))])[0]

    def windows(self, k_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where in its pass the window of each row starts, how many rows it has, and the key that permutes them."""
        start_N, size_N, key_N = np.empty_like(k_N), np.empty_like(k_N), np.empty(k_N.shape, dtype=np.uint64)
        for number, chosen, places in self._passes(k_N):
            starts = self._table(number)[0]
            window = (np.searchsorted(starts, places, side="right") - 1) // self.window
            start_N[chosen] = starts[window * self.window]
            size_N[chosen] = starts[np.minimum((window + 1) * self.window, len(starts) - 1)] - start_N[chosen]
            key = make_key(self.seed, _ROW_ORDER, self.stream, number)
            key_N[chosen] = splitmix64(key ^ window.astype(np.uint64))
        return start_N, size_N, key_N

    def ids(self, k_N: np.ndarray, place_N: np.ndarray) -> np.ndarray:
        """The ids of the rows at those places of their passes' shards."""
        out = np.empty_like(k_N)
        for number, chosen, _ in self._passes(k_N):
            starts, first_rows, _ = self._table(number)
            shard = np.searchsorted(starts, place_N[chosen], side="right") - 1
            out[chosen] = first_rows[shard] + (place_N[chosen] - starts[shard])
        return out

    def shards(self, start: int, stop: int) -> np.ndarray:
        """The shards in whose windows the stream's rows start..stop-1 lie: what has to be at hand for them; int64."""
        if stop - start >= 2 * self.n_rows:
            return np.arange(len(self.shard_sizes))
        parts = [self._table(number)[2][first:last] for number, first, last in self._begun(start, stop)]
        return np.unique(np.concatenate([np.empty(0, dtype=np.int64), *parts]))

    def n_shards(self, start: int, stop: int) -> int:
        """How many those are, each counted once in every pass."""
        return sum(last - first for _, first, last in self._begun(start, stop))

    def most_shards(self, n_rows: int) -> int:
        """In the windows of how many shards so many rows in a row can lie, wherever they are."""
        if not n_rows:
            return 0
        least = int(np.sort(self.shard_sizes)[: self._window].sum())
        # The first window and the last may be only touched; and one may be short, where a pass ends.
        n_windows = math.ceil(n_rows / least) + 1 + (len(self.shard_sizes) % self._window > 0)
        return min(n_windows * self._window, len(self.shard_sizes))

    @property
    def _window(self) -> int:
        return self.window if self.shuffle else 1

    def _begun(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Of each pass with those rows: its number, and from which to which shard of its order their windows go."""
        window, n_shards = self._window, len(self.shard_sizes)
        for number in range(start // self.n_rows, -(-stop // self.n_rows)):
            first, last = (min(max(k - number * self.n_rows, 0), self.n_rows) for k in (start, stop))
            if first < last == self.n_rows and not first:
                yield number, 0, n_shards
            elif first < last:
                starts = self._table(number)[0]
                low, high = (int(np.searchsorted(starts, place, side="right")) - 1 for place in (first, last - 1))
                yield number, low // window * window, min((high // window + 1) * window, n_shards)

    def _passes(self, k_N: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Of each pass: its number, which rows are of it, and their places in it."""
        passes, places = np.divmod(k_N, self.n_rows)
        for number in np.unique(passes).tolist():
            chosen = passes == number
            yield number, chosen, places[chosen]

    def _table(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the shards in the pass's order: the place at which each starts (and the end), its first row's id, and its
        number."""
        if number not in self._tables:
            if len(self._tables) == 2:  # a batch touches two passes at most, unless the stream is tiny
                self._tables.clear()
            key = make_key(self.seed, _SHARD_ORDER, self.stream, number)
            shards = np.arange(len(self.shard_sizes), dtype=np.uint64)
            order = np.argsort(splitmix64(key ^ shards), kind="stable") if self.shuffle else shards.astype(np.int64)
            starts = np.concatenate(([0], np.cumsum(self.shard_sizes[order])))
            self._tables[number] = starts, (np.cumsum(self.shard_sizes) - self.shard_sizes)[order], order
        return self._tables[number]


def shuffled(wanted: Sequence[tuple[StreamOrder, np.ndarray]]) -> list[np.ndarray]:
    """For each stream the ids of its k-th rows. All streams are permuted in one go: it is many small steps."""
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


@dataclass(frozen=True, eq=False)
class Stage:
    """A part of the run: each stream's share of its tokens, going from one mix to another in a straight line.

    The mixes are given as shares of rows. A stream of which so many rows have m tokens on average has a share of the
    tokens in proportion to share x m. Where the rows of the two mixes hold equally many tokens on average, a ramp is
    linear in rows too.
    """

    n_rows: float
    """math.inf for a last one that is open; its shares then stay as they are."""
    start: np.ndarray
    end: np.ndarray
    """[S] shares of the rows at its start and at its end, each of sum 1."""
    tokens_per_row: np.ndarray | None = None
    """[S] mean tokens of each stream's rows; None: equal for all of them."""

    def rates(self) -> tuple[float, float]:
        """Rows per token at its start and at its end, as multiples of their mean: they add up to 2."""
        if self.tokens_per_row is None:
            return 1.0, 1.0
        # fsum rounds once: the same in every version of Python and on every machine.
        first, last = (math.fsum((mix * self.tokens_per_row).tolist()) for mix in (self.start, self.end))
        if math.isclose(first, last, rel_tol=1e-12):
            return 1.0, 1.0
        return 2 * last / (first + last), 2 * first / (first + last)

    def shares(self, part: float) -> np.ndarray:
        """[S] shares of the rows when that part (0 to 1) of its rows is over."""
        first, last = self.rates()
        of_tokens = 2 * part / (first + math.sqrt(first * first + 2 * (last - first) * part))
        return self.start + last * of_tokens / (first + (last - first) * of_tokens) * (self.end - self.start)

    def mean(self) -> np.ndarray:
        """[S] shares of all its rows."""
        first, last = self.rates()
        return (first * self.start + last * self.end) / 2


class Interleaving:
    """Which stream, and which of its rows, each row of the run is: a merge of the streams by ideal time.

    T_s(x) is how many rows of stream s there should be among the first x rows of the run. Row k of s is due at the x
    at which T_s is k + 1/2, and the run's order is that of all rows' due times, so after every row the number of rows
    of s differs from T_s by at most 1/2 + S/2 times its largest share.

    In a stage of D rows shares are linear in tokens. With v in [0, D] the tokens so far, in units of the stage's mean
    tokens per row, stream s has contributed a_s v + c_s v^2 rows, and all streams R(v) = A v + C v^2 rows: A is the
    rate of rows per token at the start, as a multiple of the stage's mean, and B that at the end; a_s = A start_s,
    c_s = (B end_s - A start_s) / 2D, C = (B - A) / 2D. A row is due at R(v) for the v at which its stream has
    contributed it, and T_s(x) is found through the v at which R is x. Where A = B = 1, v is x.

    Both are closed forms, so rows at any position cost the same. Only + - * / and square roots of float64 are used,
    which IEEE 754 makes the same on every machine.
    """

    def __init__(self, stages: Sequence[Stage], counts: Sequence[int] | None = None) -> None:
        """`counts`: rows of each stream that were taken before, under another plan; this one begins after them."""
        n_streams = len(stages[0].start)
        taken = np.zeros(n_streams) if counts is None else np.asarray(counts, dtype=np.float64)
        self.n_streams = n_streams
        # The number of rows due by x differs from x by at most S/2.
        self._slack = n_streams / 2 + 2
        self.first = int(taken.sum())
        # Shares stay what they were after the last stage, so that there are rows past its end to compare with.
        tail = Stage(math.inf, stages[-1].end, stages[-1].end)
        every = [*stages, tail] if math.isfinite(stages[-1].n_rows) else list(stages)
        rates_J2 = np.array([stage.rates() for stage in every])
        double_J = np.array([2 * stage.n_rows for stage in every])
        start_JS = rates_J2[:, :1] * np.array([stage.start for stage in every], dtype=np.float64)
        end_JS = rates_J2[:, 1:] * np.array([stage.end for stage in every], dtype=np.float64)
        self._a_JS, self._c_JS = start_JS, (end_JS - start_JS) / double_J[:, None]
        self._A_J, self._C_J = rates_J2[:, 0], (rates_J2[:, 1] - rates_J2[:, 0]) / double_J
        self._curved = bool(self._C_J.any())
        length_J = np.array([stage.n_rows for stage in every[:-1]], dtype=np.float64)
        self._starts_J = self.first + np.concatenate(([0.0], np.cumsum(length_J)))
        mean_JS = np.array([stage.mean() for stage in every[:-1]]).reshape(-1, n_streams)
        self._taken_JS = taken + np.concatenate(
            (np.zeros((1, n_streams)), np.cumsum(mean_JS * length_J[:, None], axis=0))
        )

    def planned(self, x: float) -> np.ndarray:
        """T(x): how many rows of each stream there should be among the first x; float64 [S]."""
        stage = int(np.searchsorted(self._starts_J, x, side="right")) - 1
        v = x - self._starts_J[stage]
        if self._C_J[stage]:
            A, C = self._A_J[stage], self._C_J[stage]
            v = 2 * v / (A + math.sqrt(max(A * A + 4 * C * v, 0.0)))
        return self._taken_JS[stage] + self._a_JS[stage] * v + self._c_JS[stage] * v * v

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the run's rows start..stop-1: the stream and which row of it (counted over all passes); int64 [N] each."""
        s_N, k_N, before = self._around(start, stop)
        return s_N[start - before : stop - before], k_N[start - before : stop - before]

    def counts(self, x: int) -> np.ndarray:
        """How many rows of each stream are among the first x; int64 [S]."""
        s_N, _, before = self._around(x, x)
        low_S = self._due_by(max(x - self._slack, self.first))
        return low_S + np.bincount(s_N[: x - before], minlength=self.n_streams)

    def _around(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Rows in the run's order, those at start..stop-1 among them, and the position of the first of them."""
        if not self.first <= start <= stop:
            raise ValueError(f"rows {start} to {stop} of a plan that begins at row {self.first}")
        low_S = self._due_by(max(start - self._slack, self.first))
        high_S = self._due_by(stop + self._slack)
        n_S = high_S - low_S
        s_N = np.repeat(np.arange(self.n_streams), n_S)
        k_N = np.arange(len(s_N)) - np.repeat(np.cumsum(n_S) - n_S - low_S, n_S)
        order = np.lexsort((k_N, s_N, self._due(s_N, k_N)))
        return s_N[order], k_N[order], int(low_S.sum())

    def _due_by(self, x: float) -> np.ndarray:
        """How many rows of each stream are due at x or before; int64 [S]."""
        k_S = np.floor(self.planned(x) + 0.5).astype(np.int64)
        streams = np.arange(self.n_streams)
        # planned() and _due() round apart: what _due says counts, and it is at most one row away.
        k_S -= (self._due(streams, k_S - 1) > x) & (k_S > self._taken_JS[0])
        k_S += self._due(streams, k_S) <= x
        return k_S

    def _due(self, s_N: np.ndarray, k_N: np.ndarray) -> np.ndarray:
        """When the rows are due: the position x at which T_s(x) is k + 1/2; float64 [N], inf where never."""
        half_N = k_N + 0.5
        j_N = np.maximum((self._taken_JS.T[s_N] <= half_N[:, None]).sum(axis=1) - 1, 0)
        d_N, a_N, c_N = half_N - self._taken_JS[j_N, s_N], self._a_JS[j_N, s_N], self._c_JS[j_N, s_N]
        # The root of a v + c v^2 = d that is right for a = 0 and for c = 0 too.
        root_N = a_N + np.sqrt(np.maximum(a_N * a_N + 4 * c_N * d_N, 0.0))
        with np.errstate(divide="ignore", invalid="ignore"):
            v_N = np.where(d_N == 0, 0.0, 2 * d_N / root_N)
            if self._curved:
                C_N = self._C_J[j_N]
                v_N = np.where(C_N == 0, v_N, v_N * (self._A_J[j_N] + C_N * v_N))
        return self._starts_J[j_N] + v_N


class Mixture:
    """The rows of a run: at every position a stream and one of its rows."""

    def __init__(self, orders: Sequence[StreamOrder], interleaving: Interleaving) -> None:
        self.orders, self.interleaving = orders, interleaving

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the run's rows start..stop-1: the stream and the row's id (place in its files); int64 [N] each."""
        s_N, k_N = self.interleaving.rows(start, stop)
        id_N = np.empty_like(k_N)
        chosen = {stream: s_N == stream for stream in np.unique(s_N).tolist()}
        ids = shuffled([(self.orders[stream], k_N[rows]) for stream, rows in chosen.items()])
        for rows, id_of_rows in zip(chosen.values(), ids, strict=True):
            id_N[rows] = id_of_rows
        return s_N, id_N
