"""MinHash with locality-sensitive hashing (Broder 1997; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets,
chapter 3): documents with similar sets of shingles are likely to have an equal key in at least one bucket.

The hash functions are constants, so that results do not depend on a seed.
"""

import math
from functools import cache

import numpy as np

from data.base.hashing import hash_rows, splitmix64

_BLOCK = 512
"""Number of shingles that are hashed at a time, so that intermediate results stay in the processor's cache."""


def bucket_keys(signatures: np.ndarray, num_buckets: int) -> np.ndarray:
    """The key of each document in each bucket, uint64 [D, num_buckets], which is a hash of the number of the bucket and
    of a part of the signature. `signatures` is uint32 [D, n], where n is a multiple of num_buckets."""
    parts = signatures.reshape(-1, signatures.shape[1] // num_buckets)
    numbers = np.tile(np.arange(num_buckets, dtype=np.uint32), len(signatures))
    return hash_rows(np.column_stack([numbers, parts])).reshape(-1, num_buckets)


def signature(shingles: np.ndarray, n: int) -> np.ndarray:
    """The minimum of each of n hash functions over the shingles, uint32 [n]. `shingles` is uint64 [N] with N >= 1.

    The probability that two documents have the same minimum is the Jaccard similarity of their sets.
    """
    factors, shifts = _functions(n)
    values = (shingles >> np.uint64(32)).astype(np.uint32)
    found = np.full(n, np.iinfo(np.uint32).max, dtype=np.uint32)
    for start in range(0, len(values), _BLOCK):
        hashes = values[start : start + _BLOCK] * factors
        hashes += shifts
        np.minimum(found, hashes.min(axis=1), out=found)
    return found


@cache
def _functions(n: int) -> tuple[np.ndarray, np.ndarray]:
    """The functions `(value * factor + shift) % 2**32`, each uint32 [n, 1]. Factors are odd, so that the functions are
    permutations."""
    factors, shifts = (
        (splitmix64(np.arange(2 * n, dtype=np.uint64)) >> np.uint64(32)).astype(np.uint32).reshape(2, n, 1)
    )
    return factors | np.uint32(1), shifts


def recall(similarity: float, num_buckets: int, hashes_per_bucket: int) -> float:
    """The probability that two documents with this Jaccard similarity have an equal key in at least one bucket."""
    return 1 - (1 - similarity**hashes_per_bucket) ** num_buckets


def buckets_for(similarity: float, hashes_per_bucket: int, min_recall: float) -> int:
    """The smallest number of buckets with which `recall` is at least `min_recall`. `similarity` is below 1."""
    return math.ceil(math.log(1 - min_recall) / math.log1p(-(similarity**hashes_per_bucket)))
