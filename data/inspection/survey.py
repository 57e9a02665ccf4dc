"""Collect statistics of a source by reading all of its rows, or some of them, once."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from data.inspection.documents import Document, read_documents
from data.inspection.minhash import HASHES, signature
from data.loading.rows import Rows
from data.mds.row import Row

MOST_COMPARED = 500_000
"""Maximum number of documents per source that are compared. Each document requires 264 bytes of memory."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Survey:
    """Statistics of the rows of a source that were read."""

    name: str
    n_rows: int
    """Number of rows that were read."""
    n_all_rows: int
    tokens: int
    trained_tokens: int
    lengths: np.ndarray
    """int64, [at least max_seq_len + 1]: number of documents with each length. A text that was split into several rows
    counts as one document."""
    row_tokens: np.ndarray
    """int64, [max_seq_len + 1]: number of rows with each number of tokens."""
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


def survey_rows(
    name: str,
    rows: Rows,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    *,
    numbers: Sequence[int] | None = None,
    visit: Callable[[Document], None] | None = None,
) -> Survey:
    """Read the rows with these ascending numbers, or every row, once. `progress` is applied to the iterable of row
    numbers. `visit` is called with each document. Raises DataError for a damaged row."""
    numbers = range(rows.n_rows) if numbers is None else numbers
    counts = _Counts(row_tokens=np.zeros(rows.max_seq_len + 1, dtype=np.int64))
    lengths: Counter[int] = Counter()
    places: list[tuple[int, int]] = []
    hashes: list[int] = []
    signatures: list[np.ndarray] = []
    for document in read_documents(rows, progress(numbers), counts.add):
        lengths[len(document.ids)] += 1
        if len(places) < MOST_COMPARED:
            places.append(document.place)
            hashes.append(hash_ids(document.ids))
            signatures.append(signature(document.ids))
        if visit is not None:
            visit(document)
    by_length = np.zeros(max([rows.max_seq_len, *lengths]) + 1, dtype=np.int64)
    by_length[list(lengths.keys())] = list(lengths.values())
    return Survey(
        name=name,
        n_rows=len(numbers),
        n_all_rows=rows.n_rows,
        tokens=counts.tokens,
        trained_tokens=counts.trained_tokens,
        lengths=by_length,
        row_tokens=counts.row_tokens,
        places=np.array(places, dtype=np.int64).reshape(-1, 2),
        hashes=np.array(hashes, dtype=np.uint64),
        signatures=np.array(signatures, dtype=np.uint32).reshape(-1, HASHES),
    )


def hash_ids(ids: np.ndarray) -> int:
    return xxhash.xxh3_64_intdigest(ids.astype(np.int32).tobytes())


@dataclass(kw_only=True)
class _Counts:
    """Numbers of the rows and tokens read so far."""

    row_tokens: np.ndarray
    tokens: int = 0
    trained_tokens: int = 0
    """The first token of each document in a row is never a label, so this token does not count."""

    def add(self, row: Row) -> None:
        starts = np.cumsum(row.lengths) - row.lengths
        self.row_tokens[len(row.tokens)] += 1
        self.tokens += len(row.tokens)
        self.trained_tokens += int(np.count_nonzero(row.loss_mask)) - int(np.count_nonzero(row.loss_mask[starts]))
