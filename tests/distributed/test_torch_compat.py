import pytest
import torch

from tests.helpers.ranks import run_ranks
from train.distributed.torch_compat import patch_fsdp2_on_gloo

IS_CLASSIC = not hasattr(torch.nn.functional, "grouped_mm")
"""torch 2.7, by a feature that later ones have."""


def patched() -> list[str]:
    torch.distributed.init_process_group("gloo")
    return patch_fsdp2_on_gloo()


@pytest.mark.ranks
def test_torch_is_patched_where_it_must_be_and_only_there():
    assert run_ranks(patched, 2) == [["events", "averages"] if IS_CLASSIC else []] * 2
