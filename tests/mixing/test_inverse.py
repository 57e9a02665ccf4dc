"""The inverses of the order of rows: the position of a row of a stream, and the draws of a row of a folder."""

import dataclasses
import math
import time

import numpy as np
import pytest

from data.mixing.interleaving import Interleaving, Stage
from data.mixing.permutation import permute, unpermute
from data.mixing.stream_order import StreamOrder
from tests.helpers.curriculum import random_stages


def random_merge(seed: int) -> Interleaving:
    """Streams with ramps, shares of 0, ties (equal shares), rows of different lengths, and rows drawn earlier."""
    rng = np.random.default_rng(seed)
    n_streams = int(rng.integers(1, 12))
    stages = random_stages(rng, n_streams)
    if seed % 3 == 1:
        tokens = np.exp(rng.uniform(0, math.log(1000), n_streams))
        stages = [dataclasses.replace(one, tokens_per_row=tokens) for one in stages]
    if seed % 3 == 2:
        even = np.full(n_streams, 1 / n_streams)
        stages = [Stage(math.inf, even, even)]
    return Interleaving(stages, rng.integers(0, 40, n_streams) * (seed % 2))


@pytest.mark.parametrize("seed", range(24))
def test_positions_are_the_inverse_of_rows(seed: int) -> None:
    merge = random_merge(seed)
    s_N, k_N = merge.rows(merge.first, merge.first + 700)
    order = np.random.default_rng(seed).permutation(len(s_N))
    found = merge.positions(s_N[order], k_N[order])
    assert found.tolist() == (merge.first + order).tolist()


def test_a_row_that_is_never_drawn_has_no_position() -> None:
    merge = Interleaving([Stage(math.inf, np.array([1.0, 0.0]), np.array([1.0, 0.0]))])
    with pytest.raises(ValueError, match="never draws"):
        merge.positions(np.array([1]), np.array([0]))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 64, 1000])
def test_unpermute_is_the_inverse_of_permute(n: int) -> None:
    i, size = np.arange(n), np.full(n, n)
    for key in (0, 7, 2**64 - 1):
        keys = np.full(n, key, dtype=np.uint64)
        assert unpermute(permute(i, size, keys), size, keys).tolist() == i.tolist()


@pytest.mark.parametrize("seed", range(16))
def test_draws_are_the_inverse_of_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    order = StreamOrder(rng.integers(0, 9, 20) + (np.arange(20) == 3), seed, 2, shuffle=seed % 4 > 0, window=3)
    stop = int(rng.integers(0, 4 * order.n_rows))
    drawn = order.rows(np.arange(stop))
    row_N = rng.choice(order.n_rows, min(7, order.n_rows), replace=False)
    index, k = order.draws(row_N, stop)
    expected = [(k, row_N.tolist().index(row)) for k, row in enumerate(drawn.tolist()) if row in row_N]
    assert list(zip(k.tolist(), index.tolist(), strict=True)) == expected


def test_a_position_at_row_a_billion_is_found_in_milliseconds() -> None:
    rng = np.random.default_rng(0)
    mixes = rng.random((2, 100))
    mixes /= mixes.sum(axis=1, keepdims=True)
    merge = Interleaving([Stage(1.4e9, mixes[0], mixes[1], np.exp(rng.uniform(0, 7, 100)))])
    s_N, k_N = merge.rows(10**9, 10**9 + 100)
    began = time.process_time()
    assert merge.positions(s_N, k_N).tolist() == list(range(10**9, 10**9 + 100))
    order = StreamOrder(np.full(122_000, 8192), 1)
    (row,) = order.rows(np.array([10**9 + 12_345])).tolist()
    assert order.draws(np.array([row]), 10**9 + 20_000)[1].tolist()[-1] == 10**9 + 12_345
    assert time.process_time() - began < 1
