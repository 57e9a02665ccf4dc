"""What is collected of a source by reading each of its rows once."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import xxhash

from data.inspection.minhash import HASHES, signature
from data.loading.rows import Rows

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
    """int64, [max_seq_len + 1]: how many documents have this many tokens."""
    places: np.ndarray
    """int64, [n, 2]: row and place in it of the documents that are compared, the first MOST_COMPARED."""
    hashes: np.ndarray
    """uint64, [n]."""
    signatures: np.ndarray
    """uint32, [n, HASHES]."""

    @property
    def n_documents(self) -> int:
        return int(self.lengths.sum())


def survey_rows(name: str, rows: Rows, progress: Callable[[Iterable[int]], Iterable[int]] = iter) -> Survey:
    """Reads every row once; `progress` is put around their numbers. Raises DataError for a damaged row."""
    lengths = np.zeros(rows.max_seq_len + 1, dtype=np.int64)
    tokens = trained = 0
    places: list[tuple[int, int]] = []
    hashes: list[int] = []
    signatures: list[np.ndarray] = []
    for number in progress(range(rows.n_rows)):
        row = rows.read(number)
        tokens += len(row.tokens)
        trained += int(np.count_nonzero(row.loss_mask))
        np.add.at(lengths, row.lengths, 1)
        for place, (ids, _) in enumerate(row.documents()):
            if len(places) < MOST_COMPARED:
                places.append((number, place))
                hashes.append(xxhash.xxh3_64_intdigest(ids.astype(np.int32).tobytes()))
                signatures.append(signature(ids))
    return Survey(
        name=name,
        n_rows=rows.n_rows,
        tokens=tokens,
        trained_tokens=trained,
        lengths=lengths,
        places=np.array(places, dtype=np.int64).reshape(-1, 2),
        hashes=np.array(hashes, dtype=np.uint64),
        signatures=np.array(signatures, dtype=np.uint32).reshape(-1, HASHES),
    )
