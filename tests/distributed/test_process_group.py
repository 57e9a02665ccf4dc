"""Ranks that join late: dist_timeout counts from when all are ready."""

import os
import time

import pytest
import torch
from composer.devices import DeviceCPU
from composer.utils import dist

from tests.helpers.ranks import run_ranks
from train.distributed.process_group import initialize_dist

TIMEOUT = 3.0


def join_late(late: int) -> float:
    if int(os.environ["RANK"]) == late:
        time.sleep(2 * TIMEOUT)
    initialize_dist(DeviceCPU(), TIMEOUT)
    total = torch.ones(1)
    dist.all_reduce(total)
    return total.item()


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("late", [0, 1])
def test_a_late_rank_is_waited_for(late: int) -> None:
    assert run_ranks(join_late, 2, late) == [2.0, 2.0]
