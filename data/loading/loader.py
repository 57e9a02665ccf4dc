"""From rows to batches: which rows a batch has follows from its number, on any number of ranks and workers.

The position lives in the training process alone. A loader's dataset is indexed by batch number, and its sampler counts
from the first batch that is due, so going on at batch n costs the same as starting at 0.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from data.base.errors import DataError
from data.config.loader import DataLoaderConfig
from data.loading.rows import Row, Rows
from data.mixing.row_plan import RowPlan

TIMEOUT = 60
"""Seconds without a batch from the workers after which the run stops."""
LOOK_AHEAD = 32
"""Batches whose remote shards are brought before they are due."""
NOT_TRAINED = -100
"""The label of a position that is not trained on."""
NO_DOCUMENT = -1
"""The document id of padding."""

Batch = dict[str, torch.Tensor]


def collate(rows: Sequence[Row | None], max_seq_len: int, pad_token_id: int) -> Batch:
    """int64 tensors of [rows, max_seq_len]; None is a row of nothing but padding.

    `input_ids` padded on the right; `labels`, shifted: the next position's token where it is trained on and of the
    same document, else -100; `document_ids` 0, 1, 2, ... in each row, -1 for padding.
    """
    shape = (len(rows), max_seq_len)
    input_ids = np.full(shape, pad_token_id, dtype=np.int64)
    labels = np.full(shape, NOT_TRAINED, dtype=np.int64)
    document_ids = np.full(shape, NO_DOCUMENT, dtype=np.int64)
    for place, row in enumerate(rows):
        if row is None:
            continue
        n = len(row.tokens)
        ids = np.repeat(np.arange(len(row.lengths)), row.lengths)
        trained = (row.loss_mask[1:] != 0) & (ids[1:] == ids[:-1])
        input_ids[place, :n] = row.tokens
        labels[place, : n - 1] = np.where(trained, row.tokens[1:], NOT_TRAINED)
        document_ids[place, :n] = ids
    named = {"input_ids": input_ids, "labels": labels, "document_ids": document_ids}
    return {name: torch.from_numpy(array) for name, array in named.items()}


class TrainBatches(Dataset[Batch]):
    """Item n: this rank's rows of global batch n."""

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
            raise ValueError(f"a global batch of {size} rows cannot be cut for {world_size} ranks")
        self.plan, self.n_batches = plan, n_batches
        self.rank, self.device_batch_size = rank, size // world_size
        self.pad_token_id, self.max_seq_len = pad_token_id, max_seq_len
        self.first = 0
        """The batch that comes first: not 0 after load_state_dict."""
        self._streams = dict(streams)
        self._asked = 0
        """Batches whose shards this process has asked for."""

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
        """Begins to bring the shards of the batches to come; each call asks for what the last one did not."""
        remote = [number for number, name in enumerate(self.plan.names) if self._streams[name].is_remote]
        if not remote:
            return
        first = max(n + 1, self._asked)
        self._asked = min(n + 1 + LOOK_AHEAD, self.n_batches)
        start = self.rank * self.device_batch_size
        for batch in range(first, self._asked):
            s_N, id_N = self.plan.rows(batch, start, start + self.device_batch_size)
            for number in remote:
                self._streams[self.plan.names[number]].prefetch(id_N[s_N == number])

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """Where the run stands after num_samples rows of all ranks, and what that position means."""
        if not from_beginning:
            raise ValueError("the position is counted from the beginning of the run")
        return dict(self.plan.state(num_samples))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from the state's position, on any number of ranks.

        Raises ConfigError when the rows so far, or their order, are not those that this run would have had.
        """
        self.first = self.plan.resume(state)


class EvalBatches(Dataset[Batch]):
    """Item n: this rank's rows of eval batch n, stream after stream; past the last row, rows of padding."""

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


class BatchNumbers(DistributedSampler[Batch]):
    """Batch numbers from the dataset's first. Each rank counts the same: the dataset knows which rows are its own.

    A DistributedSampler because Composer takes no other. Its evaluation cuts `total_size - len(dataset)` samples as
    repeated ones, hence total_size.
    """

    def __init__(self, dataset: TrainBatches | EvalBatches) -> None:
        self.dataset = dataset
        self.total_size = len(dataset)

    def __iter__(self) -> Iterator[Any]:
        return iter(range(self.dataset.first, len(self.dataset)))

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Evaluation passes any number. A run has one epoch, the whole of it, so a second would repeat the order."""
        if epoch and isinstance(self.dataset, TrainBatches):
            raise ValueError(f"epoch {epoch} was asked for, but a run's order of rows is one epoch: count in batches")


class BatchLoader(DataLoader[Batch]):
    """A DataLoader that gives as many batches as it says or raises a DataError: what a worker met, or that it died."""

    def __init__(self, batches: TrainBatches | EvalBatches, **kwargs: Any) -> None:
        super().__init__(batches, batch_size=None, sampler=BatchNumbers(batches), **kwargs)
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        batches = super().__iter__()
        due = len(self.batches) - self.batches.first
        for given in range(due):
            yield self._next(batches, given, due)

    def _next(self, batches: Iterator[Batch], given: int, due: int) -> Batch:
        try:
            return next(batches)
        except DataError as error:
            # As it was raised, without the worker's traceback in the text.
            raise DataError(str(error).rpartition(f"{DataError.__name__}: ")[2].strip()) from None
        except StopIteration:
            raise DataError(f"the data ended after {given} of {due} batches: a worker lost its rows") from None
        except RuntimeError as error:
            lost = "DataLoader worker" in str(error) or "DataLoader timed out" in str(error)
            if not lost:
                raise
            raise DataError(
                f"a worker that reads rows died or gave nothing for {TIMEOUT} s ({str(error).splitlines()[0]}): look "
                "for the system's out-of-memory messages, or for a file system that hangs; num_workers: 0 reads in "
                "the training process, and shows where"
            ) from None


def train_loader(
    streams: Mapping[str, Rows],
    config: DataLoaderConfig,
    plan: RowPlan,
    *,
    n_batches: int,
    rank: int,
    world_size: int,
    pad_token_id: int,
) -> DataLoader[Batch]:
    """This rank's part of each of the run's n_batches global batches, one item a batch.

    `dataset.state_dict` and `dataset.load_state_dict` carry the position.
    """
    batches = TrainBatches(
        streams,
        plan,
        max_seq_len=config.dataset.max_seq_len,
        n_batches=n_batches,
        rank=rank,
        world_size=world_size,
        pad_token_id=pad_token_id,
    )
    return _loader(batches, config)


def eval_loader(
    streams: Mapping[str, Rows],
    config: DataLoaderConfig,
    *,
    device_batch_size: int,
    rank: int,
    world_size: int,
    pad_token_id: int,
) -> DataLoader[Batch]:
    """Every row exactly once over the ranks, the same number of equal batches on each; what is missing is padding."""
    batches = EvalBatches(
        streams,
        max_seq_len=config.dataset.max_seq_len,
        device_batch_size=device_batch_size,
        rank=rank,
        world_size=world_size,
        pad_token_id=pad_token_id,
    )
    return _loader(batches, config)


def _loader(batches: TrainBatches | EvalBatches, config: DataLoaderConfig) -> DataLoader[Batch]:
    with_workers = config.num_workers > 0
    return BatchLoader(
        batches,
        num_workers=config.num_workers,
        prefetch_factor=config.prefetch_factor if with_workers else None,
        persistent_workers=config.persistent_workers and with_workers,
        pin_memory=config.pin_memory and torch.cuda.is_available(),
        timeout=TIMEOUT if with_workers else 0,
        # Its own generator: the seed that a DataLoader draws for its workers must not move the model's random numbers.
        generator=torch.Generator(),
    )
