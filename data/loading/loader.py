"""The loaders of training and evaluation: batches read ahead by workers, or a DataError that says why not.

The position lives in the training process alone. A loader's dataset is indexed by batch number, and its sampler counts
from the first batch that is due, so resuming at batch n costs the same as starting at 0.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler

from data.base.errors import DataError, WaitInterrupted
from data.config.loader import DataLoaderConfig
from data.loading.batches import EvalBatches, TrainBatches
from data.loading.collate import Batch
from data.loading.rows import Rows
from data.loading.worker_process import BeginWorker
from data.mixing.row_plan import RowPlan

TIMEOUT = 60
"""Seconds without a batch from the workers after which the run stops."""


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
    """A DataLoader that gives as many batches as it says or raises a DataError: what a worker met, or that it died.
    It gives fewer only where a signal interrupts it."""

    def __init__(self, batches: TrainBatches | EvalBatches, **kwargs: Any) -> None:
        super().__init__(batches, batch_size=None, sampler=BatchNumbers(batches), **kwargs)
        self.batches = batches
        self.interruptible: Callable[[], AbstractContextManager[None]] = nullcontext
        """Entered while a batch is waited for. Where it raises WaitInterrupted the loader ends."""

    def __iter__(self) -> Iterator[Batch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        batches = super().__iter__()
        due = len(self.batches) - self.batches.first
        for given in range(due):
            try:
                with self.interruptible():
                    batch = self._next(batches, given, due)
            except WaitInterrupted:
                return
            yield batch

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
) -> BatchLoader:
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


def _loader(batches: TrainBatches | EvalBatches, config: DataLoaderConfig) -> BatchLoader:
    with_workers = config.num_workers > 0
    return BatchLoader(
        batches,
        num_workers=config.num_workers,
        prefetch_factor=config.prefetch_factor if with_workers else None,
        persistent_workers=config.persistent_workers and with_workers,
        pin_memory=config.pin_memory and torch.cuda.is_available(),
        timeout=TIMEOUT if with_workers else 0,
        worker_init_fn=BeginWorker(),
        # Its own generator: the seed that a DataLoader draws for its workers must not move the model's random numbers.
        generator=torch.Generator(),
    )
