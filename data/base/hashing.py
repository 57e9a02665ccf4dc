"""Hashes of integers, the same on every machine and for every version of NumPy."""

import numpy as np


def splitmix64(x: np.ndarray) -> np.ndarray:
    """The output of one step of SplitMix64 (Steele, Lea, Flood 2014) with each uint64 of x as the state."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_ngrams(items: np.ndarray, n: int) -> np.ndarray:
    """A hash of each n-gram of consecutive items. `items` is uint64 [N]; the result is uint64 [N - n + 1]. If there are
    fewer than n items, all items together count as a single n-gram."""
    count = max(len(items) - n + 1, 1)
    grams = np.zeros(count, dtype=np.uint64)
    for offset in range(min(n, len(items))):
        grams = splitmix64(grams ^ items[offset : offset + count])
    return grams


def hash_rows(values: np.ndarray) -> np.ndarray:
    """A hash of each row. `values` is [N, K] with unsigned integers; the result is uint64 [N]."""
    keys = np.zeros(len(values), dtype=np.uint64)
    for column in values.T:
        keys = splitmix64(keys ^ column.astype(np.uint64))
    return keys
