"""Find near-duplicates: documents whose sets of n-grams have a Jaccard similarity of at least ALIKE.

The similarity is estimated with MinHash (Broder 1997). Two documents are compared only if at least one band of their
signatures is equal.
"""

from collections.abc import Iterator

import numpy as np

from data.base.hashing import hash_ngrams, hash_rows, splitmix64

ALIKE = 0.8
NGRAM = 5
HASHES, BANDS = 64, 16
"""Number of hashes and bands of a signature. Two documents with a similarity of 0.8 are compared with probability
0.9998. For a similarity of 0.4, the probability is 0.34; the comparison of the complete signatures then shows that the
documents are not near-duplicates."""

_MULTIPLIERS = splitmix64(np.arange(2 * HASHES, dtype=np.uint64)).reshape(2, HASHES, 1) | np.uint64(1)


def signature(ids: np.ndarray) -> np.ndarray:
    """MinHash of the document's n-grams, uint32 [HASHES]. A document that is shorter than an n-gram counts as a single
    n-gram."""
    grams = hash_ngrams(ids.astype(np.uint64), NGRAM)
    factors, shifts = _MULTIPLIERS
    return ((grams * factors + shifts) >> np.uint64(32)).min(axis=1).astype(np.uint32)


def match_pairs(found: np.ndarray, first: np.ndarray) -> np.ndarray:
    """[n, 2]: the indices where `found` is true, and the values of `first` at these indices."""
    return np.stack([np.flatnonzero(found), first[found]], axis=1)


def near_matches(known: np.ndarray, asked: np.ndarray, *, earlier: bool) -> np.ndarray:
    """[n, 2]: indices in `asked`, and the indices of their near-duplicates in `known`. With `earlier`, a document only
    matches documents with smaller indices."""
    match = np.full(len(asked), -1, dtype=np.int64)
    numbers = np.arange(len(asked))
    for known_keys, asked_keys in zip(_band_keys(known), _band_keys(asked), strict=True):
        first = first_with(known_keys, asked_keys)
        candidates = numbers[(match < 0) & (first >= 0) & ((first < numbers) | (not earlier))]
        agree = (known[first[candidates]] == asked[candidates]).mean(axis=1)
        alike = candidates[agree >= ALIKE]
        match[alike] = first[alike]
    return match_pairs(match >= 0, match)


def _band_keys(signatures: np.ndarray) -> Iterator[np.ndarray]:
    """For each band, a uint64 key per document."""
    yield from map(hash_rows, np.split(signatures, BANDS, axis=1))


def first_with(known: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """For each key of `asked`, the first index in `known` with this key, or -1."""
    keys, first = np.unique(known, return_index=True)
    if not len(keys):
        return np.full(len(asked), -1, dtype=np.int64)
    at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[at] == asked, first[at], -1)
