"""Keyed permutations of integers, the same on every machine and for every version of NumPy."""

from collections.abc import Callable

import numpy as np

from data.base.hashing import splitmix64

_ROUNDS = 6


def make_key(seed: int, *parts: int) -> np.uint64:
    """A 64-bit key computed from integers. The key depends on the order of the integers."""
    key = np.zeros(1, dtype=np.uint64)
    for part in (seed, *parts):
        key = splitmix64(key ^ np.uint64(part % 2**64))
    return key[0]


def permute(i: np.ndarray, n: np.ndarray, key: np.ndarray) -> np.ndarray:
    """The position of i in the permutation of range(n) that the key selects, where i < n. All arrays have the same
    shape; i and n are int64, key is uint64.

    This is a Feistel network on the smallest domain with an even number of bits that contains range(n), applied
    repeatedly until the result is below n (cycle walking).
    """
    return _walk(_feistel, i, n, key)


def unpermute(place: np.ndarray, n: np.ndarray, key: np.ndarray) -> np.ndarray:
    """The inverse of `permute`: the i whose position is `place`. All arrays are as in `permute`."""
    return _walk(_feistel_inverse, place, n, key)


_Rounds = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _walk(rounds: _Rounds, i: np.ndarray, n: np.ndarray, key: np.ndarray) -> np.ndarray:
    half = ((np.frexp((n - 1).astype(np.float64))[1] + 1) // 2).astype(np.uint64)
    out = i.astype(np.uint64)
    walking = np.arange(len(out))
    while len(walking):
        out[walking] = rounds(out[walking], half[walking], key[walking])
        walking = walking[out[walking] >= n[walking].astype(np.uint64)]
    return out.astype(np.int64)


def _feistel(x: np.ndarray, half: np.ndarray, key: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = x >> half, x & mask
    for number in range(_ROUNDS):
        round_key = splitmix64(key + np.uint64(number))
        left, right = right, left ^ (splitmix64(round_key ^ right) & mask)
    return (left << half) | right


def _feistel_inverse(x: np.ndarray, half: np.ndarray, key: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = x >> half, x & mask
    for number in reversed(range(_ROUNDS)):
        round_key = splitmix64(key + np.uint64(number))
        left, right = right ^ (splitmix64(round_key ^ left) & mask), left
    return (left << half) | right
