"""Read the documents of rows. The pieces of a text that was split into several rows are joined."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data.loading.rows import Rows
from data.mds.row import Row

BLOCKS = 16
"""Number of blocks that are read if not all rows are read."""


@dataclass(frozen=True, eq=False)
class Document:
    place: tuple[int, int]
    """The row in which the document begins, and its number in the row."""
    ids: np.ndarray


def spread(n_rows: int, most: int) -> Sequence[int]:
    """The numbers of at most `most` rows, ascending: all rows, or evenly spaced blocks of
    consecutive rows."""
    if n_rows <= most:
        return range(n_rows)
    n_blocks = min(BLOCKS, most)
    sizes = np.full(n_blocks, most // n_blocks) + (np.arange(n_blocks) < most % n_blocks)
    starts = np.cumsum(sizes) - sizes + np.arange(n_blocks) * (n_rows - most) // max(n_blocks - 1, 1)
    blocks = zip(starts.tolist(), sizes.tolist(), strict=True)
    return [number for start, size in blocks for number in range(start, start + size)]


def read_documents(rows: Rows, numbers: Iterable[int], visit: Callable[[Row], None]) -> Iterator[Document]:
    """Read the rows with these ascending numbers, call `visit` with each row, and yield the documents of the rows.
    Documents of which a part is in a row that is not read are left out."""
    previous, begun, pieces = -1, (0, 0), list[np.ndarray]()
    began_before = False  # whether the current document begins in a row that is not read
    for number in numbers:
        if number != previous + 1:
            pieces, began_before = [], continues(rows, rows.read(number - 1))
        previous, row = number, rows.read(number)
        visit(row)
        for place, (ids, _) in enumerate(row.documents()):
            begun = begun if pieces else (number, place)
            pieces.append(ids)
            if place == len(row.lengths) - 1 and continues(rows, row):
                continue
            if not began_before:
                yield Document(begun, np.concatenate(pieces))
            pieces, began_before = [], False
    if pieces and previous == rows.n_rows - 1 and not began_before:
        yield Document(begun, np.concatenate(pieces))


def read_document(rows: Rows, place: tuple[int, int], most: int) -> np.ndarray:
    """The first `most` tokens, or slightly more, of the document that begins at this place."""
    number, at = place
    row = rows.read(number)
    pieces = [list(row.documents())[at][0]]
    is_last = at == len(row.lengths) - 1
    while is_last and continues(rows, row) and number + 1 < rows.n_rows and sum(map(len, pieces)) < most:
        number += 1
        row = rows.read(number)
        pieces.append(next(row.documents())[0])
        is_last = len(row.lengths) == 1
    return np.concatenate(pieces)


def continues(rows: Rows, row: Row) -> bool:
    """Whether the row's last document continues in the next row."""
    return rows.end_of_text is not None and row.tokens[-1] != rows.end_of_text
