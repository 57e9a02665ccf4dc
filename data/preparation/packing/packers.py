"""Pack documents into rows. Conversations are never split. Texts are split if necessary, and continue in the next
row."""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator

import numpy as np


def best_fit(lengths: np.ndarray, row_length: int) -> list[np.ndarray]:
    """Best-fit decreasing: documents are assigned to rows in the order of their length, longest first; each document is
    assigned to the fullest row that still has enough space for it.

    All `lengths` must be at most row_length. Returns the indices of the documents in each row. To keep the order of the
    source as far as possible, documents have their original order within a row, and rows are ordered by their first
    document. The result is deterministic, and the cost is O(n log n).
    """
    if not len(lengths):
        return []
    row_of = np.empty(len(lengths), dtype=np.int64)
    n_rows = 0
    with_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # the keys of with_room, sorted
    decreasing = np.argsort(-lengths, kind="stable")
    for index, length in zip(decreasing.tolist(), lengths[decreasing].tolist(), strict=True):
        place = bisect_left(rooms, length)
        if place == len(rooms):
            row, room = n_rows, row_length
            n_rows += 1
        else:
            room = rooms[place]
            row = with_room[room].pop()
            if not with_room[room]:
                del with_room[room]
                rooms.pop(place)
        row_of[index] = row
        left = room - length
        if left and left not in with_room:
            with_room[left] = []
            insort(rooms, left)
        if left:
            with_room[left].append(row)
    return _by_first_document(row_of, n_rows)


def _by_first_document(row_of: np.ndarray, n_rows: int) -> list[np.ndarray]:
    """The indices of the documents in each row, given the row of each document."""
    documents = np.argsort(row_of, kind="stable")
    ends = np.cumsum(np.bincount(row_of, minlength=n_rows))
    rows = np.split(documents, ends[:-1])
    return [rows[row] for row in np.argsort([row[0] for row in rows]).tolist()]


def none(lengths: np.ndarray, row_length: int) -> list[np.ndarray]:
    """One document per row."""
    return list(np.arange(len(lengths))[:, None])


PACKERS: dict[str, Callable[[np.ndarray, int], list[np.ndarray]]] = {
    "best_fit": best_fit,
    "none": none,
}


def concatenate_and_cut(lengths: np.ndarray, row_length: int) -> Iterator[list[int]]:
    """Concatenate texts and split them every row_length tokens. Yields, for each row, the lengths of the pieces of
    documents in the row.

    All rows except the last are full.
    """
    pieces: list[int] = []
    room = row_length
    for length in lengths.tolist():
        while length:
            piece = min(length, room)
            pieces.append(piece)
            length, room = length - piece, room - piece
            if not room:
                yield pieces
                pieces, room = [], row_length
    if pieces:
        yield pieces


def cut(lengths: np.ndarray, row_length: int) -> Iterator[list[int]]:
    """Start each text in a new row, and split the text into as many rows as necessary. Yields, for each row, the length
    of the piece in the row."""
    for length in lengths.tolist():
        for start in range(0, length, row_length):
            yield [min(row_length, length - start)]


CUTTERS: dict[str, Callable[[np.ndarray, int], Iterator[list[int]]]] = {
    "best_fit": concatenate_and_cut,
    "none": cut,
}
"""The value of `packing` -> the function that implements it for texts."""
