"""Candidate pairs: pairs of documents with an equal key in at least one bucket.

Tasks receive the rows of buckets sorted by key, so that they need to keep only a few rows of the current group in
memory.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from data.curation.duplicates.minhash import bucket_keys, signature
from data.curation.duplicates.shingles import shingles
from data.spark.executors import arrow_function

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

PAIR_SCHEMA = "a long, b long"
"""Ids of two documents, where a < b."""
_ROW_SCHEMA = "key long, set long, size int, id long"


class Rows(NamedTuple):
    """Rows of buckets, sorted by all columns. All arrays are [N]."""

    key: np.ndarray
    """The document's key in one bucket, int64."""
    set: np.ndarray
    """A hash of the document's set of shingles, int64."""
    size: np.ndarray
    """The number of shingles, int32."""
    id: np.ndarray
    """The document's id, int64."""

    def take(self, at: np.ndarray) -> "Rows":
        return Rows(*(column[at] for column in self))


def candidate_pairs(
    documents: "DataFrame",
    *,
    n_grams: int,
    num_buckets: int,
    hashes_per_bucket: int,
    threshold: float,
    max_comparisons: int,
) -> "DataFrame":
    """The candidate pairs, with the columns of PAIR_SCHEMA. `documents` has the columns id and text.

    Pairs whose sets are so different in size that their similarity must be below the threshold are omitted. Sets that
    occur several times are compared with other sets only once: each copy is paired with the copy that has the smallest
    id. In each bucket, a set is compared with at most `max_comparisons` other sets that were found earlier, so that the
    number of pairs grows linearly with the number of documents.
    """
    rows = documents.select("id", "text").mapInArrow(
        arrow_function(rows_of_buckets, n_grams, num_buckets, hashes_per_bucket), _ROW_SCHEMA
    )
    groups = rows.repartition("key").sortWithinPartitions("key", "set", "id")
    return groups.mapInArrow(arrow_function(pairs_in_groups, threshold, max_comparisons), PAIR_SCHEMA).distinct()


def rows_of_buckets(
    batches: Iterable[pa.RecordBatch], n_grams: int, num_buckets: int, hashes_per_bucket: int
) -> Iterator[pa.RecordBatch]:
    """The function of a task: a row for each document and bucket. Documents without words have no rows."""
    for batch in batches:
        sets = [shingles(text, n_grams) for text in batch["text"].to_pylist()]
        full = np.flatnonzero([len(found) > 0 for found in sets])
        n_hashes = num_buckets * hashes_per_bucket
        signatures = np.array([signature(sets[at], n_hashes) for at in full], dtype=np.uint32).reshape(-1, n_hashes)
        keys = bucket_keys(signatures, num_buckets)
        hashes = np.array([np.add.reduce(sets[at]) for at in full], dtype=np.uint64)
        sizes = np.array([len(sets[at]) for at in full], dtype=np.int32)
        ids = batch["id"].to_numpy()[full]
        columns = (hashes.view(np.int64), sizes, ids)
        yield _batch(Rows(keys.ravel().view(np.int64), *(np.repeat(column, num_buckets) for column in columns)))


def _batch(rows: Rows) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(column) for column in rows], names=list(Rows._fields))


def pairs_in_groups(
    batches: Iterable[pa.RecordBatch], threshold: float, max_comparisons: int
) -> Iterator[pa.RecordBatch]:
    """The function of a task: the candidate pairs of documents with equal keys. A pair can occur several times. Each
    key is in a single task, and a group of equal keys can continue in the next batch."""
    rest = Rows(*(np.empty(0, dtype=dtype) for dtype in (np.int64, np.int64, np.int32, np.int64)))
    for batch in batches:
        new = Rows(*(batch[name].to_numpy() for name in Rows._fields))
        rows = Rows(*map(np.concatenate, zip(rest, new, strict=True)))
        left, right, rest = _compare(rows, len(rest.key), max_comparisons)
        sizes = rows.size[left], rows.size[right]
        # The similarity is at most this ratio, which is computed as in similarity.py.
        possible = np.minimum(*sizes) / np.maximum(*sizes) >= threshold
        ids = rows.id[left[possible]], rows.id[right[possible]]
        yield pa.RecordBatch.from_arrays([pa.array(np.minimum(*ids)), pa.array(np.maximum(*ids))], names=["a", "b"])


def _compare(rows: Rows, n_old: int, max_comparisons: int) -> tuple[np.ndarray, np.ndarray, Rows]:
    """The pairs of rows to compare, as two arrays of indices, and the rows to keep for the next batch. Pairs of the
    first n_old rows, which were kept from earlier batches, are omitted."""
    is_start = _changes(rows.key)
    is_set = is_start | _changes(rows.set)
    sets = np.flatnonzero(is_set)  # the first row of each set in each group
    number = np.cumsum(is_set) - 1  # for each row, the index of its set in `sets`
    first = number[is_start][np.cumsum(is_start) - 1]  # for each row, the index of the first set in its group
    is_new = np.arange(len(rows.key)) >= n_old
    counts = np.where(is_set & is_new, np.minimum(number - first, max_comparisons), 0)
    right = np.repeat(np.arange(len(counts)), counts)
    earlier = np.arange(len(right)) - np.repeat(np.cumsum(counts) - counts, counts)
    copies = np.flatnonzero(~is_set & is_new)
    left = np.concatenate([sets[first[right] + earlier], sets[number[copies]]])
    return left, np.concatenate([right, copies]), rows.take(_kept(sets, first, max_comparisons))


def _kept(sets: np.ndarray, first: np.ndarray, max_comparisons: int) -> np.ndarray:
    """The rows of the last group with which rows of the next batch may be compared, and the last set, of which the next
    batch may contain copies."""
    last = sets[first[-1] :] if len(first) else sets
    return np.concatenate([last[:max_comparisons], last[max_comparisons:][-1:]])


def _changes(values: np.ndarray) -> np.ndarray:
    """Whether each value differs from the value before it. The first value does."""
    return np.concatenate([np.ones(min(len(values), 1), dtype=bool), values[1:] != values[:-1]])
