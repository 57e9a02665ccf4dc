"""Collect statistics of a source by reading each row once."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import xxhash

from data.inspection.minhash import HASHES, signature
from data.loading.rows import Rows
from data.mds.row import Row

MOST_COMPARED = 500_000
"""Maximum number of documents per source that are compared. Each document requires 264 bytes of memory."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Survey:
    """Statistics of all rows of a source."""

    name: str
    n_rows: int
    tokens: int
    trained_tokens: int
    lengths: np.ndarray
    """int64, [at least max_seq_len + 1]: number of documents with each length. A text that was split into several rows
    counts as one document."""
    places: np.ndarray
    """int64, [n, 2]: for each compared document, the row in which the document begins, and the document's number in
    this row. The first MOST_COMPARED documents are compared."""
    hashes: np.ndarray
    """uint64, [n]: a hash of each compared document's tokens."""
    signatures: np.ndarray
    """uint32, [n, HASHES]: the MinHash signature of each compared document."""

    @property
    def n_documents(self) -> int:
        return int(self.lengths.sum())


def survey_rows(name: str, rows: Rows, progress: Callable[[Iterable[int]], Iterable[int]] = iter) -> Survey:
    """Read every row once. `progress` is applied to the iterable of row numbers. Raises DataError for a damaged row."""
    counts = _Counts()
    lengths: Counter[int] = Counter()
    places: list[tuple[int, int]] = []
    hashes: list[int] = []
    signatures: list[np.ndarray] = []
    for place, ids in _documents(rows, progress, counts):
        lengths[len(ids)] += 1
        if len(places) < MOST_COMPARED:
            places.append(place)
            hashes.append(xxhash.xxh3_64_intdigest(ids.astype(np.int32).tobytes()))
            signatures.append(signature(ids))
    by_length = np.zeros(max([rows.max_seq_len, *lengths]) + 1, dtype=np.int64)
    by_length[list(lengths.keys())] = list(lengths.values())
    return Survey(
        name=name,
        n_rows=rows.n_rows,
        tokens=counts.tokens,
        trained_tokens=counts.trained_tokens,
        lengths=by_length,
        places=np.array(places, dtype=np.int64).reshape(-1, 2),
        hashes=np.array(hashes, dtype=np.uint64),
        signatures=np.array(signatures, dtype=np.uint32).reshape(-1, HASHES),
    )


@dataclass
class _Counts:
    """Number of tokens read so far."""

    tokens: int = 0
    trained_tokens: int = 0
    """The first token of each document in a row is never a label, so this token does not count."""

    def add(self, row: Row) -> None:
        starts = np.cumsum(row.lengths) - row.lengths
        self.tokens += len(row.tokens)
        self.trained_tokens += int(np.count_nonzero(row.loss_mask)) - int(np.count_nonzero(row.loss_mask[starts]))


def _documents(
    rows: Rows, progress: Callable[[Iterable[int]], Iterable[int]], counts: _Counts
) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """The location of each document, as (row, number in the row), and the document's tokens. The parts of split
    documents are joined."""
    begun, parts = (0, 0), list[np.ndarray]()
    for number in progress(range(rows.n_rows)):
        row = rows.read(number)
        counts.add(row)
        for place, (ids, _) in enumerate(row.documents()):
            begun = begun if parts else (number, place)
            parts.append(ids)
            if rows.end_of_text is not None and place == len(row.lengths) - 1 and ids[-1] != rows.end_of_text:
                continue
            yield begun, np.concatenate(parts)
            parts = []
    if parts:
        yield begun, np.concatenate(parts)
