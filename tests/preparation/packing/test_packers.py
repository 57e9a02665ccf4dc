import numpy as np
import pytest

from data.preparation.packing.packers import CUTTERS, PACKERS, best_fit, concatenate_and_cut, cut, none


def log_normal(n: int, mean: float, longest: int, sigma: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, n)
    return np.clip(lengths, 1, longest).astype(np.int32)


def slow_best_fit(lengths: list[int], row_length: int) -> list[list[int]]:
    """The simple loop over all rows."""
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        rooms = [(row_length - sum(lengths[i] for i in row), row) for row in rows]
        fitting = [(room, row) for room, row in rooms if room >= lengths[index]]
        if fitting:
            min(fitting, key=lambda pair: pair[0])[1].append(index)
        else:
            rows.append([index])
    return rows


def as_lists(rows) -> list[list[int]]:
    return [row.tolist() for row in rows]


@pytest.mark.parametrize("packing", PACKERS)
def test_each_document_is_in_one_row_and_no_row_is_too_long(packing):
    lengths = log_normal(500, 60, 256)
    rows = PACKERS[packing](lengths, 256)
    assert sorted(np.concatenate(rows).tolist()) == list(range(500))
    assert max(lengths[row].sum() for row in rows) <= 256


@pytest.mark.parametrize("packing", PACKERS)
def test_no_documents_give_no_rows(packing):
    nothing = np.array([], dtype=np.int32)
    assert PACKERS[packing](nothing, 8) == list(CUTTERS[packing](nothing, 8)) == []


def test_best_fit_uses_99_percent_of_positions():
    lengths = log_normal(20_000, 600, 4096)
    assert lengths.sum() / (len(best_fit(lengths, 4096)) * 4096) >= 0.99


@pytest.mark.parametrize("seed", range(20))
def test_best_fit_fills_rows_like_the_simple_loop(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 33, rng.integers(1, 80)).astype(np.int32)

    def fills(rows):
        return sorted(int(lengths[row].sum()) for row in rows)

    # Either of two equally full rows may take a document; the number of tokens per row is the same.
    assert fills(best_fit(lengths, 32)) == fills(slow_best_fit(lengths.tolist(), 32))


def test_rows_and_documents_keep_the_order_of_the_source():
    assert as_lists(best_fit(np.array([6, 3, 4, 7, 5]), 10)) == [[0, 2], [1, 3], [4]]


def test_none_gives_each_document_its_row():
    assert as_lists(none(np.array([3, 1, 2]), 4)) == [[0], [1], [2]]


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [
        ([3, 1, 2], [[3, 1], [2]]),
        ([4, 4], [[4], [4]]),
        ([10], [[4], [4], [2]]),
        ([1, 9, 1], [[1, 3], [4], [2, 1]]),
    ],
)
def test_texts_are_cut_and_continue_in_the_next_row(lengths, rows):
    assert list(concatenate_and_cut(np.array(lengths), 4)) == rows


@pytest.mark.parametrize("seed", range(10))
def test_pieces_of_texts_say_where_documents_end(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 100, rng.integers(1, 50)).astype(np.int32)
    rows = list(concatenate_and_cut(lengths, 32))
    assert [sum(row) for row in rows[:-1]] == [32] * (len(rows) - 1)
    assert min(min(row) for row in rows) > 0
    borders = set(np.cumsum([piece for row in rows for piece in row]).tolist())
    assert borders == {*np.cumsum(lengths).tolist(), *range(32, int(lengths.sum()), 32)}


def test_texts_without_packing_begin_rows_of_their_own():
    assert list(cut(np.array([3, 9, 4]), 4)) == [[3], [4], [4], [1], [4]]
