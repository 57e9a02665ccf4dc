"""What is collected of a source by reading each of its rows once."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import xxhash

from data.inspection.minhash import HASHES, signature
from data.loading.rows import Rows
from data.mds.row import Row

MOST_COMPARED = 500_000
"""Documents of a source that are compared: 264 bytes each."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Survey:
    """What all rows of a source hold."""

    name: str
    n_rows: int
    tokens: int
    trained_tokens: int
    lengths: np.ndarray
    """int64, [at least max_seq_len + 1]: how many documents have this many tokens. A text that was cut into rows is one
    document."""
    places: np.ndarray
    """int64, [n, 2]: where the documents that are compared begin, the first MOST_COMPARED: row and place in it."""
    hashes: np.ndarray
    """uint64, [n]."""
    signatures: np.ndarray
    """uint32, [n, HASHES]."""

    @property
    def n_documents(self) -> int:
        return int(self.lengths.sum())


def survey_rows(name: str, rows: Rows, progress: Callable[[Iterable[int]], Iterable[int]] = iter) -> Survey:
    """Reads every row once; `progress` is put around their numbers. Raises DataError for a damaged row."""
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
    """Of what was read."""

    tokens: int = 0
    trained_tokens: int = 0
    """Without the first token of a document in a row, which nothing predicts."""

    def add(self, row: Row) -> None:
        starts = np.cumsum(row.lengths) - row.lengths
        self.tokens += len(row.tokens)
        self.trained_tokens += int(np.count_nonzero(row.loss_mask)) - int(np.count_nonzero(row.loss_mask[starts]))


def _documents(
    rows: Rows, progress: Callable[[Iterable[int]], Iterable[int]], counts: _Counts
) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """Where each begins, row and place, and its tokens: those that were cut put together again."""
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
