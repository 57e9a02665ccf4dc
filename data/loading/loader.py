"""The loaders of training and evaluation: batches read ahead by workers, or a DataError that says why not.

The position lives in the training process alone. A loader's dataset is indexed by batch number, and its sampler counts
from the first batch that is due, so resuming at batch n costs the same as starting at 0.
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
"""Is entered while a batch is waited for, and gives the seconds that are left."""


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
    """A DataLoader that gives as many batches as it says or raises a DataError: what a worker met, or which one has
    ended or is late. It gives fewer only where a signal interrupts it. `waiting` (see Waiting) can be replaced before
    the first batch."""

    def __init__(
        self, batches: TrainBatches | EvalBatches, *, name: str, limit: float | None = None, **kwargs: Any
    ) -> None:
        """name: see Workers. limit: seconds that a batch of the workers may take, unless `waiting` says otherwise."""
        super().__init__(batches, batch_size=None, sampler=BatchNumbers(batches), **kwargs)
        self.batches, self.waiting, self.limit = batches, self._until_limit, limit
        self._name, self._workers, self._given = name, Workers(name, []), 0
        self.interruptible: Callable[[], AbstractContextManager[None]] = nullcontext
        """Entered while a batch is waited for. Where it raises WaitInterrupted the loader ends."""

    def __iter__(self) -> Iterator[Batch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        first, due = self.batches.first, len(self.batches) - self.batches.first
        self._given = 0
        with self._watched(), self.worker_errors():
            with self.waiting() as seconds_left, self._workers.waited_for(None, first, seconds_left):
                batches = super().__iter__()
        # torch's list, which only names them here.
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
        """Makes a DataError of what torch raises when a worker has ended, at any moment of the run."""
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
            # As it was raised, without the worker's traceback in the text.
            raise DataError(str(error).rpartition(f"{DataError.__name__}: ")[2].strip()) from None
        except StopIteration:
            given = f"{self._given} of {due} batches"
            raise DataError(f"the data ended after {given}: a worker lost its rows") from None

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
    """This rank's part of each of the run's n_batches global batches, one item a batch.

    `dataset.state_dict` and `dataset.load_state_dict` carry the position. limit: seconds that a batch of the workers
    may take; None for any.
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
    """Every row exactly once over the ranks, the same number of equal batches on each; what is missing is padding."""
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
        # Its own generator: the seed that a DataLoader draws for its workers must not move the model's random numbers.
        generator=torch.Generator(),
    )
