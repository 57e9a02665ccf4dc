"""MinHash and its buckets."""

import numpy as np
import pytest

from data.curation.duplicates.minhash import bucket_keys, buckets_for, recall, signature


def planted(rng: np.random.Generator, similarity: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of `size` shingles with this Jaccard similarity."""
    n_common = round(2 * size * similarity / (1 + similarity))
    values = rng.integers(0, 2**64, 2 * size - n_common, dtype=np.uint64)
    return values[:size], values[-size:]


@pytest.mark.parametrize("size", [30, 300, 1500])
@pytest.mark.parametrize("similarity", [0.3, 0.8])
def test_equal_minima_estimate_the_similarity(size, similarity):
    rng = np.random.default_rng(0)
    pairs = [planted(rng, similarity, size) for _ in range(100)]
    found = np.mean([signature(a, 120) == signature(b, 120) for a, b in pairs])
    assert found == pytest.approx(similarity, abs=0.025)


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.9])
def test_pairs_are_found_with_the_probability_of_the_formula(similarity):
    rng = np.random.default_rng(1)
    pairs = [planted(rng, similarity, 200) for _ in range(400)]
    a, b = (bucket_keys(np.array([signature(pair[side], 40) for pair in pairs]), 8) for side in range(2))
    found = (a == b).any(axis=1).mean()
    assert found == pytest.approx(recall(similarity, 8, 5), abs=0.06)


def test_keys_of_different_buckets_differ():
    keys = bucket_keys(np.zeros((1, 20), dtype=np.uint32), 20)
    assert len(np.unique(keys)) == 20


def test_the_needed_number_of_buckets():
    needed = buckets_for(0.8, 6, 0.9)
    assert recall(0.8, needed, 6) >= 0.9 > recall(0.8, needed - 1, 6)


def test_keys_do_not_change():
    found = signature(np.array([1, 2**40, 2**63], dtype=np.uint64), 6)
    assert bucket_keys(found[None], 2)[0].tolist() == [
        14028670679800741392,
        17787524147719110063,
    ]
