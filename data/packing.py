"""From documents to rows: which documents share a row. A document is never split."""

from bisect import bisect_left, insort
from collections.abc import Callable

import numpy as np


def best_fit(lengths: np.ndarray, row_length: int) -> list[list[int]]:
    """Best-fit decreasing: the longest document first, each into the fullest row that still has room for it.

    `lengths` are at most row_length. Returns the documents' indices row by row, in their own order inside a row, and
    the rows by their first document: the order of the source survives as far as it can. Deterministic, O(n log n).
    """
    rows: list[list[int]] = []
    with_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # the keys of with_room, sorted
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        place = bisect_left(rooms, length)
        if place == len(rooms):
            row, room = len(rows), row_length
            rows.append([])
        else:
            room = rooms[place]
            row = with_room[room].pop()
            if not with_room[room]:
                del with_room[room]
                rooms.pop(place)
        rows[row].append(index)
        left = room - length
        if left and left not in with_room:
            with_room[left] = []
            insort(rooms, left)
        if left:
            with_room[left].append(row)
    return sorted(sorted(row) for row in rows)


def none(lengths: np.ndarray, row_length: int) -> list[list[int]]:
    """Each document in a row of its own."""
    return [[index] for index in range(len(lengths))]


PACKERS: dict[str, Callable[[np.ndarray, int], list[list[int]]]] = {
    "best_fit": best_fit,
    "none": none,
}
