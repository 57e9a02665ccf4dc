"""A set of batches of a run."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Batches:
    """A set of batches, which are numbered from 0."""

    ranges: tuple[tuple[int, int], ...] = ()
    """Ascending and disjoint ranges. Each consists of its first batch and the batch after its last batch."""

    @classmethod
    def of(cls, first: int, stop: int) -> "Batches":
        return cls(((first, stop),) if first < stop else ())

    def __len__(self) -> int:
        return sum(stop - first for first, stop in self.ranges)

    def followed_by(self, first: int, stop: int) -> "Batches":
        """This set and the batches first..stop-1, which come after all batches of this set."""
        if first >= stop:
            return self
        if self.ranges and self.ranges[-1][1] == first:
            return Batches((*self.ranges[:-1], (self.ranges[-1][0], stop)))
        return Batches((*self.ranges, (first, stop)))

    def between(self, first: int, stop: int) -> "Batches":
        """The batches of this set that are in first..stop-1."""
        cut = [(max(begin, first), min(end, stop)) for begin, end in self.ranges]
        return Batches(tuple((begin, end) for begin, end in cut if begin < end))

    def without(self, other: "Batches") -> "Batches":
        """The batches of this set that are not in the other set."""
        rest = []
        for first, stop in self.ranges:
            for begin, end in other.between(first, stop).ranges:
                rest.append((first, begin))
                first = end
            rest.append((first, stop))
        return Batches(tuple((first, stop) for first, stop in rest if first < stop))

    def contain(self, batch_N: np.ndarray) -> np.ndarray:
        """For each of the batches, whether it is in this set."""
        edges = np.array([edge for pair in self.ranges for edge in pair], dtype=np.int64)
        return np.searchsorted(edges, batch_N, side="right") % 2 == 1
