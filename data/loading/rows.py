"""The rows of a source that was opened. Rows are read and checked one by one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.mds.folder import MdsFolder
from data.mds.row import Row

_HINT = "write the rows again, or set the tokenizer and max_seq_len with which they were written"


@dataclass(frozen=True, eq=False, kw_only=True)
class Rows:
    """The rows of one source."""

    folder: Path
    fingerprint: str
    max_seq_len: int
    n_rows: int
    tokens: int | None
    """Number of tokens in all rows, without padding; None if unknown."""
    trained_tokens: int | None
    vocab_size: int
    mds: MdsFolder = field(repr=False)
    decode: Callable[[Mapping[str, Any]], Row] = field(repr=False)
    """A function that converts a sample to a row, and raises ValueError for an invalid sample."""
    end_of_text: int | None = None
    """The token that ends each document. If the last document of a row does not end with this token, the document
    continues in the next row. None if documents are never split."""

    @property
    def shard_sizes(self) -> np.ndarray:
        """Number of rows in each shard, int64."""
        return self.mds.shard_sizes

    @property
    def is_remote(self) -> bool:
        return self.mds.remote is not None

    def read(self, row_id: int) -> Row:
        """Read a row. If the row's shard is not local, the shard is fetched. Raises DataError if the shard cannot be
        fetched or the row is invalid."""
        sample = self.mds.read(row_id)
        try:
            row = self.decode(sample)
            self._check(row)
        except ValueError as error:
            raise self.mds.damaged(row_id, str(error), _HINT) from None
        return row

    def prefetch(self, row_ids: np.ndarray) -> None:
        """Start threads that fetch the shards that contain these rows, except for shards that are already local."""
        shards = np.searchsorted(self.mds.ends, row_ids, side="right")
        self.mds.prefetch(dict.fromkeys(shards.tolist()))

    def _check(self, row: Row) -> None:
        n = len(row.tokens)
        if not n == len(row.loss_mask) == row.lengths.sum() or np.any(row.lengths < 1) or not n:
            raise ValueError(
                f"the row has {n} tokens, {len(row.loss_mask)} values in the loss mask, and lengths that sum to "
                f"{row.lengths.sum()}"
            )
        if n > self.max_seq_len:
            raise ValueError(f"the row has {n} tokens, but max_seq_len is {self.max_seq_len}")
        low, high = int(row.tokens.min()), int(row.tokens.max())
        if low < 0 or high >= self.vocab_size:
            token_id = low if low < 0 else high
            raise ValueError(
                f"the row contains the token id {token_id}, but the tokenizer's ids are 0 to {self.vocab_size - 1}"
            )
