"""A process group of any size in one process, without communication."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

# Importing this module registers the backend `fake`.
from torch.testing._internal.distributed.fake_pg import FakeStore


@contextmanager
def fake_ranks(world_size: int) -> Iterator[None]:
    """Within this context, the process is rank 0 of world_size ranks. The environment variables are set accordingly,
    because Composer compares them with the process group. Raises RuntimeError if a process group already exists."""
    if dist.is_initialized():
        raise RuntimeError("ranks cannot be simulated in a process that already has a process group")
    sizes = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    numbers = {"RANK": 0, "LOCAL_RANK": 0, "NODE_RANK": 0}
    before = {name: os.environ.get(name) for name in (*sizes, *numbers)}
    os.environ |= {name: str(number) for name, number in (sizes | numbers).items()}
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
