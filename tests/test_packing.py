import time

import numpy as np
import pytest

from data.packing import PACKERS, best_fit, none


def log_normal(n: int, mean: float, longest: int, sigma: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, n)
    return np.clip(lengths, 1, longest).astype(np.int32)


def slow_best_fit(lengths: list[int], row_length: int) -> list[list[int]]:
    """The obvious loop over all rows."""
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        rooms = [(row_length - sum(lengths[i] for i in row), row) for row in rows]
        fitting = [(room, row) for room, row in rooms if room >= lengths[index]]
        if fitting:
            min(fitting, key=lambda pair: pair[0])[1].append(index)
        else:
            rows.append([index])
    return rows


@pytest.mark.parametrize("packing", PACKERS)
def test_each_document_is_in_one_row_and_no_row_is_too_long(packing):
    lengths = log_normal(500, 60, 256)
    rows = PACKERS[packing](lengths, 256)
    assert sorted(index for row in rows for index in row) == list(range(500))
    assert max(lengths[row].sum() for row in rows) <= 256


def test_best_fit_uses_99_percent_of_positions_and_is_quick():
    lengths = log_normal(20_000, 600, 4096)
    start = time.process_time()
    rows = best_fit(lengths, 4096)
    assert time.process_time() - start < 5
    assert lengths.sum() / (len(rows) * 4096) >= 0.99


@pytest.mark.parametrize("seed", range(20))
def test_best_fit_fills_rows_as_the_obvious_loop_does(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 33, rng.integers(1, 80)).astype(np.int32)

    def fills(rows):
        return sorted(int(lengths[row].sum()) for row in rows)

    # Which of two equally full rows takes a document is free, and does not change how full rows get.
    assert fills(best_fit(lengths, 32)) == fills(slow_best_fit(lengths.tolist(), 32))


def test_rows_and_documents_keep_the_order_of_the_source():
    assert best_fit(np.array([6, 3, 4, 7, 5]), 10) == [[0, 2], [1, 3], [4]]


def test_none_gives_each_document_its_row():
    assert none(np.array([3, 1, 2]), 4) == [[0], [1], [2]]
