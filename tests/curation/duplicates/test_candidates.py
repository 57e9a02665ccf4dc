"""Candidate pairs from sorted rows of buckets. These tests need no Spark."""

import itertools
import random

import numpy as np
import pyarrow as pa
import pytest

from data.curation.duplicates.candidates import Rows, pairs_in_groups, rows_of_buckets

KINDS = dict(zip(Rows._fields, (pa.int64(), pa.int64(), pa.int32(), pa.int64()), strict=True))


def pairs(
    rows: list[Rows], cuts: list[int], threshold: float = 0.5, max_comparisons: int = 100
) -> list[tuple[int, int]]:
    rows = sorted(rows)
    ends = [0, *sorted(cuts), len(rows)]
    parts = [rows[start:end] for start, end in itertools.pairwise(ends)]
    batches = [pa.RecordBatch.from_pylist([row._asdict() for row in part], schema=pa.schema(KINDS)) for part in parts]
    found = pairs_in_groups(batches, threshold, max_comparisons)
    return [tuple(pair.values()) for batch in found for pair in batch.to_pylist()]


def slow_pairs(rows: list[Rows], threshold: float, max_comparisons: int) -> set[tuple[int, int]]:
    found = set()
    for _, group in itertools.groupby(sorted(rows), key=lambda row: row.key):
        first: dict[int, Rows] = {}
        for row in group:
            others = [first[row.set]] if row.set in first else list(first.values())[:max_comparisons]
            first.setdefault(row.set, row)
            sizes = [sorted((row.size, other.size)) for other in others]
            found |= {
                (min(row.id, other.id), max(row.id, other.id))
                for other, (low, high) in zip(others, sizes, strict=True)
                if low / high >= threshold
            }
    return found


def random_rows(seed: int) -> list[Rows]:
    chosen = random.Random(seed)
    sizes = [chosen.randint(1, 10) for _ in range(9)]
    rows = []
    for id in range(60):
        kind = chosen.randrange(9)
        rows += [Rows(key, kind, sizes[kind], id) for key in chosen.sample(range(6), 2)]
    return rows


@pytest.mark.parametrize("max_comparisons", [1, 2, 3, 100])
@pytest.mark.parametrize("seed", range(10))
def test_pairs_do_not_depend_on_the_batches(seed, max_comparisons):
    rows = random_rows(seed)
    expected = slow_pairs(rows, 0.5, max_comparisons)
    for n_cuts in (0, 1, 10, 120):
        cuts = random.Random(seed).choices(range(len(rows) + 1), k=n_cuts)
        assert set(pairs(rows, cuts, 0.5, max_comparisons)) == expected


def test_the_number_of_pairs_in_a_large_group_is_linear():
    rows = [Rows(1, -id, 5, id) for id in range(1000)]
    assert len(pairs(rows, [100, 500], max_comparisons=4)) == 1 + 2 + 3 + 4 * 996


def test_copies_of_a_set_are_paired_with_the_first_copy_alone():
    rows = [Rows(1, 7, 5, id) for id in range(5)]
    assert sorted(pairs(rows, [2])) == [(0, 1), (0, 2), (0, 3), (0, 4)]


def test_each_document_with_words_has_a_row_in_each_bucket():
    batch = pa.RecordBatch.from_pydict({"id": [4, 5, 6], "text": ["a b c", "!", "a b  C"]})
    (rows,) = (found.to_pylist() for found in rows_of_buckets([batch], 2, 3, 4))
    assert [row["id"] for row in rows] == [4, 4, 4, 6, 6, 6]
    assert [row["size"] for row in rows] == [2] * 6
    assert [row["key"] for row in rows[:3]] == [row["key"] for row in rows[3:]]
    assert len({row["set"] for row in rows}) == 1


def test_batches_without_words_have_no_rows():
    batch = pa.RecordBatch.from_pydict({"id": [5], "text": ["!"]})
    (found,) = rows_of_buckets([batch], 2, 3, 4)
    assert found.num_rows == 0
    assert found.schema.types == list(KINDS.values())


def test_near_duplicates_are_found_among_many_documents_with_the_same_template():
    rng = np.random.default_rng(0)
    template = np.arange(200)

    def changed(words: np.ndarray, n: int) -> np.ndarray:
        words = words.copy()
        words[rng.integers(0, len(words), n)] = rng.integers(10**3, 10**6, n)
        return words

    first = [changed(template, 6) for _ in range(500)]
    texts = [" ".join(map(str, words)) for words in [*first, *(changed(words, 1) for words in first[:200])]]
    batch = pa.RecordBatch.from_pydict({"id": range(len(texts)), "text": texts})
    rows = pa.Table.from_batches(rows_of_buckets([batch], 5, 20, 6)).sort_by([(name, "ascending") for name in KINDS])
    batches = list(pairs_in_groups(rows.combine_chunks().to_batches(1000), 0.8, 5))
    found = {tuple(pair.values()) for batch in batches for pair in batch.to_pylist()}
    assert len(found) < 5 * 20 * len(texts)
    assert sum((number, 500 + number) in found for number in range(200)) >= 198
