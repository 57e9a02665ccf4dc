"""Each patch of Composer: its probe agrees with Composer's behaviour, and a patch is applied only if it is needed.

A test that fails after an upgrade of Composer may mean that a patch is no longer needed and can be deleted.
"""

from typing import Any

import pytest
import torch
from composer.distributed import prepare_distributed
from composer.models import ComposerModel
from composer.utils.parallelism import FSDP2Config
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.helpers.ranks import run_ranks
from train import composer_compat


class Tiny(ComposerModel):
    def __init__(self) -> None:
        super().__init__()
        self.module = torch.nn.Linear(2, 2)

    def forward(self, batch: Any) -> Any:
        return self.module(batch)

    def loss(self, outputs: Any, batch: Any) -> Any:
        return outputs.sum()


def sharding() -> tuple[bool, bool, bool, bool]:
    """Return whether the probe requests the patch, and whether Composer fails on a model, on a sharded model, and on
    that with the patch."""
    torch.distributed.init_process_group("gloo")
    needed, whole, sharded = composer_compat.shards_again(), fails(shard=False), fails(shard=True)
    composer_compat.leave_sharded_models()
    return needed, whole, sharded, fails(shard=True)


def fails(*, shard: bool) -> bool:
    model, mesh = Tiny(), init_device_mesh("cpu", (1,))
    if shard:
        fully_shard(model, mesh=mesh)
    try:
        prepare_distributed.parallelize_composer_model(model, None, FSDP2Config(device_mesh=mesh))
    except Exception:
        return True
    return False


@pytest.mark.ranks
def test_composer_fails_on_a_sharded_model_where_the_probe_says_so() -> None:
    ((needed, whole, sharded, patched),) = run_ranks(sharding, 1)
    assert (whole, patched) == (False, False)
    assert needed == sharded


def test_a_composer_that_needs_no_patch_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composer_compat, "shards_again", lambda: False)
    own = prepare_distributed.parallelize_composer_model
    assert not composer_compat.leave_sharded_models()
    assert prepare_distributed.parallelize_composer_model is own
