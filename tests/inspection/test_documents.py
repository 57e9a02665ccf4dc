"""A part of the rows is read in blocks; documents that are only partly in a block are left out."""

import random
from pathlib import Path

import numpy as np
import pytest

from data.inspection.documents import BLOCKS, read_document, read_documents, spread
from data.loading.opening import open_rows
from data.loading.rows import Rows
from tests.helpers.toy_tokenizer import ToyTokenizer, dataset_config, write_jsonl


def text_rows(folder: Path, lengths: list[int], packing: str = "best_fit") -> Rows:
    texts = [{"text": chr(97 + n % 26) * length} for n, length in enumerate(lengths)]
    write_jsonl(folder / "train.jsonl", texts)
    return open_rows(dataset_config(folder, max_seq_len=16, packing=packing), ToyTokenizer())


@pytest.mark.parametrize(("n_rows", "most"), [(0, 5), (5, 5), (6, 5), (100, 1), (1000, 37), (1000, 999), (10**9, 50)])
def test_spread_rows_are_ascending_distinct_and_reach_the_end(n_rows: int, most: int) -> None:
    numbers = list(spread(n_rows, most))
    assert len(numbers) == min(n_rows, most)
    assert numbers == sorted(set(numbers))
    if numbers and most > 1:
        assert (numbers[0], numbers[-1]) == (0, n_rows - 1)
    assert np.count_nonzero(np.diff(numbers) > 1) < BLOCKS


@pytest.mark.parametrize("seed", range(4))
def test_documents_of_some_rows_are_those_that_lie_in_these_rows(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    rows = text_rows(tmp_path, [rng.choice([1, 3, 8, 15, 30, 70]) for _ in range(60)])
    everything = list(read_documents(rows, range(rows.n_rows), lambda row: None))
    rows_of = {each.place: _rows_of(each.place, rows) for each in everything}
    numbers = [n for start in (0, 9, 20, rows.n_rows - 7) for n in range(start, start + 6)]
    found = list(read_documents(rows, numbers, lambda row: None))
    expected = [each for each in everything if rows_of[each.place] <= set(numbers)]
    assert [each.place for each in found] == [each.place for each in expected]
    assert all((one.ids == other.ids).all() for one, other in zip(found, expected, strict=True))


def _rows_of(place: tuple[int, int], rows: Rows) -> set[int]:
    """The numbers of the rows that contain the document."""
    row, number = place
    used = {row}
    while number == len(rows.read(row).lengths) - 1 and rows.read(row).tokens[-1] != 256 and row + 1 < rows.n_rows:
        row, number = row + 1, 0
        used.add(row)
    return used


def test_a_document_is_read_from_its_place(tmp_path: Path) -> None:
    rows = text_rows(tmp_path, [40, 3, 20, 70, 5])
    for each in read_documents(rows, range(rows.n_rows), lambda row: None):
        assert read_document(rows, each.place, 1000).tolist() == each.ids.tolist()
        start = read_document(rows, each.place, 10)
        assert min(len(each.ids), 10) <= len(start) <= 10 + 16
        assert each.ids[: len(start)].tolist() == start.tolist()
