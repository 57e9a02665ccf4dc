"""Repeated n-grams of words.

N-grams are compared by 64-bit hashes of their characters. The probability that any two different n-grams of a document
with a million words have the same hash is about 3e-8.
"""

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np

_BASE = 0x9E3779B97F4A7C15
_TABLE = 1 << 12
"""Number of powers that are kept in memory. Longer words are rare."""


class NGrams:
    """The n-grams of a document's words, for increasing n."""

    def __init__(self, words: Sequence[str]) -> None:
        self.lengths = np.fromiter(map(len, words), np.int64, len(words))
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        """Number of characters before each word; at the end, the number of all characters."""
        codes = np.frombuffer("".join(words).encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
        self.powers = _powers(int(self.lengths.max(initial=0)) + 2)
        within = np.arange(len(codes)) - np.repeat(self.starts[:-1], self.lengths)
        # A polynomial hash: the sum of (code + 1) * BASE**position, modulo 2**64.
        terms = np.append((codes + np.uint64(1)) * self.powers[within], np.uint64(0))
        self.hashes = np.where(self.lengths > 0, np.add.reduceat(terms, self.starts[:-1]), np.uint64(0))

    def joined(self, sizes: Sequence[int], separator: str) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (n, hashes of all n-grams) for these n in increasing order. The hash is that of the words joined with
        the separator, an empty string or one character."""
        shift, head = self.powers[self.lengths + len(separator)], self.hashes
        if separator:
            head = head + self.powers[self.lengths] * np.uint64(ord(separator) + 1)
        found = self.hashes
        for n in range(1, max(sizes, default=0) + 1):
            if n > 1:
                count = max(len(head) - n + 1, 0)
                found = head[:count] + shift[:count] * found[1 : count + 1]
            if n in sizes:
                yield n, found

    def top_chars(self, hashes: np.ndarray, n: int) -> int:
        """Number of characters of the most frequent n-gram, including single spaces between its words, times its
        number of occurrences. Of equally frequent n-grams, the first counts."""
        if not len(hashes):
            return 0
        ordered = np.sort(hashes)
        first = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
        counts = np.diff(np.append(first, len(ordered)))
        most = int(counts.max())
        position = 0 if most == 1 else int(np.argmax(np.isin(hashes, ordered[first[counts == most]])))
        return (int(self.starts[position + n] - self.starts[position]) + n - 1) * most

    def duplicate_chars(self, hashes: np.ndarray, n: int) -> int:
        """Number of characters in repeated n-grams, reading from the start: after a repeated n-gram, reading continues
        behind it, so that no character is counted twice. N-grams that are not read do not count as an earlier
        occurrence."""
        ordered = np.sort(hashes)
        repeated = ordered[1:][ordered[1:] == ordered[:-1]]
        if not len(repeated):
            return 0
        positions = np.flatnonzero(np.isin(hashes, repeated))
        total, next_position, seen = 0, 0, set()
        for position, value in zip(positions.tolist(), hashes[positions].tolist(), strict=True):
            if position < next_position:
                continue
            if value in seen:
                total += int(self.starts[position + n] - self.starts[position])
                next_position = position + n
            else:
                seen.add(value)
        return total


def _powers(count: int) -> np.ndarray:
    """The first powers of BASE, modulo 2**64."""
    return _table(_TABLE) if count <= _TABLE else _table.__wrapped__(count)


@cache
def _table(count: int) -> np.ndarray:
    factors = np.full(count, _BASE, np.uint64)
    factors[0] = 1
    return np.cumprod(factors)
