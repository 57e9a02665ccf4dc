import numpy as np
import pytest

from data.base.hashing import splitmix64
from data.mixing.permutation import make_key, permute
from data.mixing.stream_order import StreamOrder

SIZES = np.array([5, 3, 7, 1, 4, 6, 2, 9, 8, 3, 5, 1])
M64 = 2**64 - 1


def mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & M64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & M64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & M64
    return x ^ (x >> 31)


def slow_key(*parts: int) -> int:
    key = 0
    for part in parts:
        key = mix(key ^ (part & M64))
    return key


def slow_permute(i: int, n: int, key: int) -> int:
    half = 0
    while 4**half < n:
        half += 1
    mask = 2**half - 1
    while True:
        left, right = i >> half, i & mask
        for number in range(6):
            left, right = right, left ^ (mix(mix((key + number) & M64) ^ right) & mask)
        i = (left << half) | right
        if i < n:
            return i


def slow_pass(sizes: list[int], seed: int, stream: int, number: int, window: int) -> list[int]:
    """A complete epoch, computed row by row with Python's integers."""
    key = slow_key(seed, 1, stream, number)
    order = sorted(range(len(sizes)), key=lambda shard: mix(key ^ shard))
    out = []
    for w in range(0, len(sizes), window):
        rows = [sum(sizes[:shard]) + i for shard in order[w : w + window] for i in range(sizes[shard])]
        row_key = mix(slow_key(seed, 2, stream, number) ^ (w // window))
        out += [rows[slow_permute(i, len(rows), row_key)] for i in range(len(rows))]
    return out


def test_the_hash_is_splitmix64():
    """The published first outputs of the generator seeded with 0, and keys that must never change."""
    assert splitmix64(np.array([0], dtype=np.uint64))[0] == 0xE220A8397B1DCDAF
    assert splitmix64(np.array([0x9E3779B97F4A7C15], dtype=np.uint64))[0] == 0x6E789E6AA1B965F4
    assert make_key(17, 1, 0, 0) == 2607279059015843003
    assert make_key(-1, 2) == slow_key(M64, 2)


def test_the_order_never_changes():
    """Golden: a change here changes the data of every run that is resumed."""
    order = StreamOrder(np.array([4, 3, 5]), seed=17, window=2)
    assert order.rows(np.arange(12)).tolist() == [8, 9, 6, 7, 5, 4, 11, 10, 1, 2, 3, 0]
    assert order.rows(np.arange(12, 24)).tolist() == [8, 6, 7, 10, 11, 4, 9, 5, 0, 2, 3, 1]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 1000, 4097])
def test_permute_is_a_permutation(n):
    key = np.full(n, make_key(n), dtype=np.uint64)
    out = permute(np.arange(n), np.full(n, n), key)
    assert sorted(out.tolist()) == list(range(n))
    assert out.tolist() == [slow_permute(i, n, int(key[0])) for i in range(n)]


def test_permutations_of_three_are_all_about_as_frequent():
    keys = np.array([make_key(3, k) for k in range(3000)])
    columns = [permute(np.full(3000, i), np.full(3000, 3), keys) for i in range(3)]
    _, counts = np.unique(np.stack(columns, axis=1), axis=0, return_counts=True)
    assert len(counts) == 6
    assert counts.min() > 430
    assert counts.max() < 570


@pytest.mark.parametrize(("seed", "stream", "window"), [(17, 0, 8), (0, 3, 1), (-5, 1, 3), (2**63, 0, 100)])
def test_closed_form_equals_the_slow_replay(seed, stream, window):
    order = StreamOrder(SIZES, seed, stream, window=window)
    replay = [row for number in range(3) for row in slow_pass(SIZES.tolist(), seed, stream, number, window)]
    assert order.rows(np.arange(3 * order.n_rows)).tolist() == replay
    some = np.random.default_rng(0).integers(0, 3 * order.n_rows, 50)
    assert StreamOrder(SIZES, seed, stream, window=window).rows(some).tolist() == [replay[k] for k in some]


def test_each_epoch_has_each_row_once_and_epochs_differ():
    order = StreamOrder(SIZES, 17)
    passes = order.rows(np.arange(4 * order.n_rows)).reshape(4, -1)
    assert all(sorted(rows) == list(range(order.n_rows)) for rows in passes.tolist())
    assert len({tuple(rows) for rows in passes.tolist()}) == 4


def test_each_shard_is_read_in_one_window():
    order = StreamOrder(SIZES, 17, window=3)
    shards = np.repeat(np.arange(len(SIZES)), SIZES)[order.rows(np.arange(order.n_rows))]
    spans = {shard: np.flatnonzero(shards == shard) for shard in range(len(SIZES))}
    in_order = sorted(spans, key=lambda shard: spans[shard].min())
    windows = [in_order[i : i + 3] for i in range(0, len(SIZES), 3)]
    for window in windows:
        places = np.concatenate([spans[shard] for shard in window])
        assert places.max() - places.min() + 1 == len(places)


def test_seeds_and_streams_differ():
    orders = [StreamOrder(SIZES, seed, stream) for seed in (17, 18) for stream in (0, 1)]
    assert len({tuple(order.rows(np.arange(order.n_rows)).tolist()) for order in orders}) == 4


def test_without_shuffle_epochs_are_in_the_order_of_the_files():
    order = StreamOrder(np.array([2, 3]), 17, shuffle=False)
    assert order.rows(np.arange(12)).tolist() == [0, 1, 2, 3, 4] * 2 + [0, 1]


def test_positions_far_away_cost_no_more():
    order = StreamOrder(np.full(100, 1000), 17)
    rows = order.rows(np.arange(10**12, 10**12 + 100_000))
    assert len(np.unique(rows)) == 100_000  # the window spans one whole pass: 10^12 is a multiple of its length


def test_a_stream_without_rows_is_refused():
    with pytest.raises(ValueError, match="a stream of 0 rows has no order"):
        StreamOrder(np.array([], dtype=np.int64), 17)


def test_rows_are_mixed_well_and_each_shard_is_needed_once_per_epoch():
    """Rows of a batch come from many shards, and a shard is needed once per epoch."""
    n_shards, size, batch = 4000, 16, 64
    order = StreamOrder(np.full(n_shards, size), seed=3)
    ids = order.rows(np.arange(n_shards * size))
    shards = ids // size
    assert min(len(np.unique(part)) for part in np.split(shards, len(shards) // batch)) >= 6
    assert abs(np.corrcoef(np.arange(len(ids)), ids)[0, 1]) < 0.05
    first = np.full(n_shards, len(ids))
    np.minimum.at(first, shards, np.arange(len(ids)))
    last = np.zeros(n_shards, dtype=np.int64)
    np.maximum.at(last, shards, np.arange(len(ids)))
    assert (last - first).max() < order.window * size


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_the_shards_that_rows_need_are_known_beforehand(seed, shuffle):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, 37)
    order, ends = StreamOrder(sizes, seed, shuffle=shuffle, window=4), np.cumsum(sizes)
    for _ in range(50):
        start = int(rng.integers(0, 3 * ends[-1]))
        stop = start + int(rng.integers(1, 60))
        touched = np.unique(np.searchsorted(ends, order.rows(np.arange(start, stop)), side="right"))
        needed = order.shards(start, stop)
        assert set(touched) <= set(needed)
        assert len(needed) <= order.most_shards(stop - start)
        if not shuffle:
            assert len(touched) == len(needed)
    assert order.n_shards(0, 3 * order.n_rows) == 3 * len(sizes)
    assert order.n_shards(0, order.n_rows + 1) == len(sizes) + (4 if shuffle else 1)
    assert order.n_shards(5, 5) == 0
