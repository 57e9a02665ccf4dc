"""The loaders for training and evaluation. Workers prefetch batches; if a worker fails, a DataError is raised.

Only the training process stores the position in the data. A loader's dataset is indexed by batch number, and its
sampler starts at the next batch, so resuming at batch n costs the same as starting at batch 0.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler

from data.base.errors import DataError, WaitInterrupted
from data.config.loader import DataLoaderConfig
from data.loading.batches import EvalBatches, TrainBatches
from data.loading.collate import Batch
from data.loading.rows import Rows
from data.loading.worker_process import BeginWorker
from data.loading.workers import Workers
from data.mixing.row_plan import RowPlan

Waiting = Callable[[], AbstractContextManager[Callable[[], float]]]
"""The type of a context manager that is active while the loader waits for a batch. The context manager yields a
function that returns how many seconds are left to wait."""


class BatchNumbers(DistributedSampler[Batch]):
    """Yields batch numbers, starting at the dataset's first batch. The batch numbers are the same on all ranks, and the
    dataset selects the rank's rows.

    This is a DistributedSampler because Composer accepts no other sampler. Composer's evaluation drops `total_size -
    len(dataset)` samples as duplicates, so total_size is set.
    """

    def __init__(self, dataset: TrainBatches | EvalBatches) -> None:
        self.dataset = dataset
        self.total_size = len(dataset)

    def __iter__(self) -> Iterator[Any]:
        return iter(range(self.dataset.first, len(self.dataset)))

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """In evaluation, any epoch is allowed. In training, only epoch 0 is allowed, because a second epoch would
        repeat the order of the rows."""
        if epoch and isinstance(self.dataset, TrainBatches):
            raise ValueError(f"epoch {epoch} was requested, but a run has a single epoch: set durations in batches")


class BatchLoader(DataLoader[Batch]):
    """A DataLoader that yields all remaining batches of its dataset, or raises a DataError if a worker fails, ends or
    is late. Only a signal can end the iteration earlier. `waiting` (see Waiting) can be replaced before the first
    batch."""

    def __init__(
        self, batches: TrainBatches | EvalBatches, *, name: str, limit: float | None = None, **kwargs: Any
    ) -> None:
        """name: the name of the loader in messages, such as `rank 1's train_loader`. limit: maximum number of seconds
        to wait for a batch from the workers, used unless `waiting` is replaced."""
        super().__init__(batches, batch_size=None, sampler=BatchNumbers(batches), **kwargs)
        self.batches, self.waiting, self.limit = batches, self._until_limit, limit
        self._name, self._workers, self._given = name, Workers(name, []), 0
        self.interruptible: Callable[[], AbstractContextManager[None]] = nullcontext
        """A context manager that is active while the loader waits for a batch. If it raises WaitInterrupted, the
        iteration ends."""

    def __iter__(self) -> Iterator[Batch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        first, due = self.batches.first, len(self.batches) - self.batches.first
        self._given = 0
        with self._watched(), self.worker_errors():
            with self.waiting() as seconds_left, self._workers.waited_for(None, first, seconds_left):
                batches = super().__iter__()
        # The list is a private attribute of torch's iterator. It is only used to identify the workers in messages.
        self._workers = Workers(self._name, [worker.pid for worker in getattr(batches, "_workers", ())])
        with self._watched():
            for given in range(due):
                self._given = given
                try:
                    with self.worker_errors(), self.waiting() as seconds_left, self.interruptible():
                        with self._workers.waited_for(given, first + given, seconds_left):
                            batch = self._next(batches, due)
                except WaitInterrupted:
                    return
                self._given += 1
                yield batch

    @contextmanager
    def worker_errors(self) -> Iterator[None]:
        """Convert the error that torch raises after a worker has ended into a DataError. torch may raise this error at
        any time during the run."""
        try:
            yield
        except (RuntimeError, OSError, EOFError) as error:
            named = self._workers.named(error, self._given, self.batches.first + self._given)
            if named is None:
                raise
            raise named from None

    @contextmanager
    def _watched(self) -> Iterator[None]:
        if self.limit is not None and self._workers:
            self._workers.watch()
        try:
            yield
        finally:
            self._workers.close()

    def _next(self, batches: Iterator[Batch], due: int) -> Batch:
        try:
            return next(batches)
        except DataError as error:
            # Remove the worker's traceback, which torch adds to the text.
            kind = type(error)
            raise kind(str(error).rpartition(f"{kind.__name__}: ")[2].strip()) from None
        except StopIteration:
            given = f"{self._given} of {due} batches"
            raise DataError(f"the data ended after {given}: batches of a worker are missing") from None

    @contextmanager
    def _until_limit(self) -> Iterator[Callable[[], float]]:
        end = time.monotonic() + (self.limit if self.limit is not None else float("inf"))
        yield lambda: end - time.monotonic()


def train_loader(
    streams: Mapping[str, Rows],
    config: DataLoaderConfig,
    plan: RowPlan,
    *,
    n_batches: int,
    rank: int,
    world_size: int,
    pad_token_id: int,
    limit: float | None = None,
) -> BatchLoader:
    """A loader that yields this rank's part of each global batch. The run has n_batches global batches.

    `dataset.state_dict` and `dataset.load_state_dict` save and restore the position. limit: maximum number of seconds
    to wait for a batch from the workers; None: no limit.
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
    return _loader(batches, config, f"rank {rank}'s train_loader", limit)


def eval_loader(
    streams: Mapping[str, Rows],
    config: DataLoaderConfig,
    *,
    device_batch_size: int,
    rank: int,
    world_size: int,
    pad_token_id: int,
    limit: float | None = None,
) -> BatchLoader:
    """A loader that reads each row exactly once over all ranks. Each rank gets the same number of batches of the same
    size, filled with padding."""
    batches = EvalBatches(
        streams,
        max_seq_len=config.dataset.max_seq_len,
        device_batch_size=device_batch_size,
        rank=rank,
        world_size=world_size,
        pad_token_id=pad_token_id,
    )
    return _loader(batches, config, f"rank {rank}'s eval_loader", limit)


def _loader(
    batches: TrainBatches | EvalBatches, config: DataLoaderConfig, name: str, limit: float | None
) -> BatchLoader:
    with_workers = config.num_workers > 0
    return BatchLoader(
        batches,
        name=name,
        limit=limit,
        num_workers=config.num_workers,
        prefetch_factor=config.prefetch_factor if with_workers else None,
        persistent_workers=config.persistent_workers and with_workers,
        pin_memory=config.pin_memory and torch.cuda.is_available(),
        worker_init_fn=BeginWorker(),
        # A separate generator is used, so that drawing a seed for the workers does not change the model's random
        # numbers.
        generator=torch.Generator(),
    )
