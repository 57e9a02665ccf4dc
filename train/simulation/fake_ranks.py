"""A process group of any size in one process, in which nothing is sent."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

# Importing it registers the backend `fake`.
from torch.testing._internal.distributed.fake_pg import FakeStore


@contextmanager
def fake_ranks(world_size: int) -> Iterator[None]:
    """This process is rank 0 of so many. Raises RuntimeError where there is a process group already."""
    if dist.is_initialized():
        raise RuntimeError("ranks cannot be simulated in a process that has a process group")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()
