"""From rows to batches: which rows a batch has follows from its number, on any number of ranks and workers.

The position lives in the training process alone. A loader's dataset is indexed by batch number, and its sampler counts
from the first batch that is due, so going on at batch n costs the same as starting at 0.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from data.config import DataLoaderConfig
from data.errors import ConfigError, DataError
from data.mixture import StreamOrder
from data.rows import Row, Rows, open_rows

__all__ = ["Batch", "Rows", "collate", "eval_loader", "open_rows", "train_loader"]

STATE_VERSION = 1
TIMEOUT = 60
"""Seconds without a batch from the workers after which the run stops."""
NOT_TRAINED = -100
"""The label of a position that is not trained on."""
NO_DOCUMENT = -1
"""The document id of padding."""

Batch = dict[str, torch.Tensor]


def collate(rows: list[Row | None], max_seq_len: int, pad_token_id: int) -> Batch:
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
        rows: Rows,
        order: StreamOrder,
        *,
        global_batch_size: int,
        n_batches: int,
        rank: int,
        world_size: int,
        pad_token_id: int,
    ) -> None:
        if global_batch_size % world_size:
            raise ValueError(f"a global batch of {global_batch_size} rows cannot be cut for {world_size} ranks")
        if rows.n_rows < global_batch_size:
            raise DataError(
                f"the dataset has {rows.n_rows} rows of {rows.max_seq_len} tokens ({rows.folder}), but one global "
                f"batch has {global_batch_size}: lower global_train_batch_size or max_seq_len, or add data"
            )
        self.rows, self.order = rows, order
        self.global_batch_size, self.n_batches = global_batch_size, n_batches
        self.rank, self.device_batch_size = rank, global_batch_size // world_size
        self.pad_token_id = pad_token_id
        self.max_seq_len = rows.max_seq_len
        self.first = 0
        """The batch that comes first: not 0 after load_state_dict."""

    def __len__(self) -> int:
        return self.n_batches

    def __getitem__(self, n: int) -> Batch:
        start = n * self.global_batch_size + self.rank * self.device_batch_size
        ids = self.order.rows(np.arange(start, start + self.device_batch_size))
        return collate([self.rows.read(row_id) for row_id in ids.tolist()], self.max_seq_len, self.pad_token_id)

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """Where the run stands after num_samples rows of all ranks, and what that position means."""
        if not from_beginning:
            raise ValueError("the position is counted from the beginning of the run")
        return {
            "version": STATE_VERSION,
            "rows": num_samples,
            **self._past(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from the state's position, on any number of ranks.

        Raises ConfigError when the rows so far, or their order, are not those that this run would have had.
        """
        if state.get("version") != STATE_VERSION:
            raise ConfigError(
                f"the checkpoint's data position has version {state.get('version')}, but this code reads "
                f"{STATE_VERSION}: go on with the code that wrote it, or start another run with load_weights_only=true"
            )
        past = self._past()
        changed = [f"{key} was {state.get(key)}, now {value}" for key, value in past.items() if state.get(key) != value]
        if changed:
            raise ConfigError(
                f"the checkpoint was written in the middle of other data ({'; '.join(changed)}): put it back to go on, "
                "or start another run from the weights, with another run_name, load_path and load_weights_only=true"
            )
        self.first = state["rows"] // self.global_batch_size

    def _past(self) -> dict[str, Any]:
        """What decides which rows have been seen; the fingerprint is that of the data."""
        return {
            "the dataset's fingerprint": self.rows.fingerprint,
            # A shuffle has a seed; the order of the files has none.
            "seed": self.order.seed if self.order.shuffle else None,
            "shuffle": self.order.shuffle,
            "max_seq_len": self.max_seq_len,
            # The Trainer counts in batches: with others, its clock and schedule would not fit the rows.
            "global_train_batch_size": self.global_batch_size,
        }


class EvalBatches(Dataset[Batch]):
    """Item n: this rank's rows of eval batch n, in the order of the files; past the last row, rows of padding."""

    def __init__(self, rows: Rows, *, device_batch_size: int, rank: int, world_size: int, pad_token_id: int) -> None:
        self.rows, self.device_batch_size, self.pad_token_id = rows, device_batch_size, pad_token_id
        self.rank, self.global_batch_size = rank, device_batch_size * world_size
        self.max_seq_len = rows.max_seq_len
        self.first = 0

    def __len__(self) -> int:
        return -(-self.rows.n_rows // self.global_batch_size)

    def __getitem__(self, n: int) -> Batch:
        start = n * self.global_batch_size + self.rank * self.device_batch_size
        ids = range(start, start + self.device_batch_size)
        rows = [self.rows.read(row_id) if row_id < self.rows.n_rows else None for row_id in ids]
        return collate(rows, self.max_seq_len, self.pad_token_id)


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
    """A DataLoader whose workers' DataErrors arrive as they were raised, without the worker's traceback in the text."""

    def __iter__(self) -> Iterator[Batch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            yield from super().__iter__()
        except DataError as error:
            raise DataError(str(error).rpartition(f"{DataError.__name__}: ")[2].strip()) from None


def train_loader(
    rows: Rows,
    config: DataLoaderConfig,
    *,
    seed: int,
    global_batch_size: int,
    n_batches: int,
    rank: int,
    world_size: int,
    pad_token_id: int,
) -> DataLoader[Batch]:
    """This rank's part of each of the run's n_batches global batches, one item a batch.

    `dataset.state_dict` and `dataset.load_state_dict` carry the position. Raises DataError when the dataset has fewer
    rows than one global batch.
    """
    own_seed = config.dataset.shuffle_seed
    order = StreamOrder(rows.shard_sizes, seed if own_seed is None else own_seed, shuffle=config.dataset.shuffle)
    batches = TrainBatches(
        rows,
        order,
        global_batch_size=global_batch_size,
        n_batches=n_batches,
        rank=rank,
        world_size=world_size,
        pad_token_id=pad_token_id,
    )
    return _loader(batches, config)


def eval_loader(
    rows: Rows, config: DataLoaderConfig, *, device_batch_size: int, rank: int, world_size: int, pad_token_id: int
) -> DataLoader[Batch]:
    """Every row exactly once over the ranks, the same number of equal batches on each; what is missing is padding."""
    batches = EvalBatches(
        rows, device_batch_size=device_batch_size, rank=rank, world_size=world_size, pad_token_id=pad_token_id
    )
    return _loader(batches, config)


def _loader(batches: TrainBatches | EvalBatches, config: DataLoaderConfig) -> DataLoader[Batch]:
    with_workers = config.num_workers > 0
    return BatchLoader(
        batches,
        batch_size=None,
        sampler=BatchNumbers(batches),
        num_workers=config.num_workers,
        prefetch_factor=config.prefetch_factor if with_workers else None,
        persistent_workers=config.persistent_workers and with_workers,
        pin_memory=config.pin_memory and torch.cuda.is_available(),
        timeout=TIMEOUT if with_workers else 0,
        # Its own generator: the seed that a DataLoader draws for its workers must not move the model's random numbers.
        generator=torch.Generator(),
    )
