import pytest
import torch

from tests.helpers.ranks import run_ranks
from train.distributed.torch_compat import (
    all_reduce_asserts_an_event,
    patch_fsdp2_on_gloo,
    reduce_scatter_averages,
)

IS_CLASSIC = not hasattr(torch.nn.functional, "grouped_mm")
"""Whether this is torch 2.7, detected by a feature that later versions have."""


def patched() -> tuple[bool, bool, list[str]]:
    torch.distributed.init_process_group("gloo")
    return all_reduce_asserts_an_event(), reduce_scatter_averages(), patch_fsdp2_on_gloo()


@pytest.mark.ranks
def test_torch_is_patched_only_where_necessary():
    found = (True, False, ["events", "averages"]) if IS_CLASSIC else (False, True, [])
    assert run_ranks(patched, 2) == [found] * 2
