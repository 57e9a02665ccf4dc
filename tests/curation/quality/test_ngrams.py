"""Hashes of n-grams give the same counts as comparing the n-grams themselves."""

import random
from collections import Counter

import pytest

from data.curation.quality.ngrams import NGrams

SIZES = (1, 2, 3, 5)


def top_chars(words: list[str], n: int) -> int:
    grams = [" ".join(words[start : start + n]) for start in range(len(words) - n + 1)]
    if not grams:
        return 0
    counts = Counter(grams)
    first = max(counts, key=lambda gram: (counts[gram], -grams.index(gram)))
    return len(first) * counts[first]


def duplicate_chars(words: list[str], n: int) -> int:
    seen, total, start = set(), 0, 0
    while start <= len(words) - n:
        gram = "".join(words[start : start + n])
        total += len(gram) if gram in seen else 0
        start += n if gram in seen else 1
        seen.add(gram)
    return total


@pytest.mark.parametrize("seed", range(30))
def test_counts_are_those_of_the_n_grams(seed):
    rng = random.Random(seed)
    # Different n-grams, such as `a ab` and `aa b`, can have the same characters.
    vocabulary = ["a", "b", "ab", "aa", "\x00", "é", "中", "b" * 5000, "", *map(str, range(seed))]
    words = rng.choices(vocabulary, k=rng.choice((0, 1, 3, 40, 200)))
    grams = NGrams(words)
    assert [grams.top_chars(hashes, n) for n, hashes in grams.joined(SIZES, " ")] == [
        top_chars(words, n) for n in SIZES
    ]
    assert [grams.duplicate_chars(hashes, n) for n, hashes in grams.joined(SIZES, "")] == [
        duplicate_chars(words, n) for n in SIZES
    ]
