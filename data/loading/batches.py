"""Datasets whose items are batches, indexed by their number, for any number of ranks and workers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from data.loading.collate import Batch, collate
from data.loading.rows import Rows
from data.mds.row import Row
from data.mixing.row_plan import RowPlan

LOOK_AHEAD = 32
"""Number of batches after the current batch for which remote shards are prefetched."""


class TrainBatches(Dataset[Batch]):
    """A dataset whose item n contains this rank's rows of global batch n."""

    def __init__(
        self,
        streams: Mapping[str, Rows],
        plan: RowPlan,
        *,
        max_seq_len: int,
        n_batches: int,
        rank: int,
        world_size: int,
        pad_token_id: int,
    ) -> None:
        size = plan.global_batch_size
        if size % world_size:
            raise ValueError(f"a global batch of {size} rows is not divisible by {world_size} ranks")
        self.plan, self.n_batches = plan, n_batches
        self.rank, self.device_batch_size = rank, size // world_size
        self.pad_token_id, self.max_seq_len = pad_token_id, max_seq_len
        self.first = 0
        """The number of the first batch to read: 0, unless load_state_dict has set a checkpoint's position."""
        self._streams = dict(streams)
        self._requested = 0
        """Number of batches whose shards this process has requested."""

    def __len__(self) -> int:
        return self.n_batches

    def __getitem__(self, n: int) -> Batch:
        start = self.rank * self.device_batch_size
        s_N, id_N = self.plan.rows(n, start, start + self.device_batch_size)
        names = self.plan.names
        self._look_ahead(n)
        places = zip(s_N.tolist(), id_N.tolist(), strict=True)
        rows = [self._streams[names[stream]].read(row_id) for stream, row_id in places]
        return collate(rows, self.max_seq_len, self.pad_token_id) | {"streams": torch.from_numpy(s_N)}

    def _look_ahead(self, n: int) -> None:
        """Start to fetch the shards of the next batches, except for shards that earlier calls have requested."""
        remote = [number for number, name in enumerate(self.plan.names) if self._streams[name].is_remote]
        if not remote:
            return
        first = max(n + 1, self._requested)
        self._requested = min(n + 1 + LOOK_AHEAD, self.n_batches)
        start = self.rank * self.device_batch_size
        for batch in range(first, self._requested):
            s_N, id_N = self.plan.rows(batch, start, start + self.device_batch_size)
            for number in remote:
                self._streams[self.plan.names[number]].prefetch(id_N[s_N == number])

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """The position of the run after all ranks together have read num_samples rows, and the plan to which the
        position refers."""
        if not from_beginning:
            raise ValueError("the position must be counted from the beginning of the run")
        return dict(self.plan.state(num_samples))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the position in `state`, with any number of ranks.

        Raises ConfigError if the rows that were read before the checkpoint, or their order, are different in this run.
        """
        self.first = self.plan.resume(state)


class EvalBatches(Dataset[Batch]):
    """A dataset whose item n contains this rank's rows of eval batch n. The streams are read one after another, and the
    last batches are filled with padding."""

    def __init__(
        self,
        streams: Mapping[str, Rows],
        *,
        max_seq_len: int,
        device_batch_size: int,
        rank: int,
        world_size: int,
        pad_token_id: int,
    ) -> None:
        self.device_batch_size, self.pad_token_id, self.max_seq_len = device_batch_size, pad_token_id, max_seq_len
        self.rank, self.global_batch_size = rank, device_batch_size * world_size
        self.first = 0
        self._rows = list(streams.values())
        self._ends = np.cumsum([rows.n_rows for rows in self._rows])

    def __len__(self) -> int:
        return -(-int(self._ends[-1]) // self.global_batch_size)

    def __getitem__(self, n: int) -> Batch:
        start = n * self.global_batch_size + self.rank * self.device_batch_size
        rows = [self._read(place) for place in range(start, start + self.device_batch_size)]
        return collate(rows, self.max_seq_len, self.pad_token_id)

    def _read(self, place: int) -> Row | None:
        if place >= self._ends[-1]:
            return None
        stream = int(np.searchsorted(self._ends, place, side="right"))
        rows = self._rows[stream]
        return rows.read(place - int(self._ends[stream]) + rows.n_rows)
