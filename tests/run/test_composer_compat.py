"""Each patch of Composer: that its probe agrees with what Composer does, and that nothing is patched without need.

A test that fails after an upgrade of Composer may mean that a patch is no longer needed and can be deleted.
"""

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from composer import Trainer
from composer.callbacks import CheckpointSaver
from composer.core import Callback, State
from composer.distributed import prepare_distributed
from composer.loggers import Logger
from composer.models import ComposerModel
from composer.utils import checkpoint, dist
from composer.utils.parallelism import FSDP2Config
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.helpers.ranks import run_ranks
from tests.helpers.toy_run import write_toy_run
from train import composer_compat
from train.callbacks.restore_rng import RestoreRNG
from train.config.load import read_config
from train.run.fit import fit


class Tiny(ComposerModel):
    def __init__(self) -> None:
        super().__init__()
        self.module = torch.nn.Linear(2, 2)

    def forward(self, batch: Any) -> Any:
        return self.module(batch)

    def loss(self, outputs: Any, batch: Any) -> Any:
        return outputs.sum()


def sharding() -> tuple[bool, bool, bool, bool]:
    """Whether the probe wants the patch; whether Composer fails on a model, a sharded one, and on that when patched."""
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


class Look(Callback):
    """Whether the random state still waits when the first batch has been loaded, and the step has not begun."""

    def __init__(self) -> None:
        self.found: list[bool] = []

    def after_dataloader(self, state: State, logger: Logger) -> None:
        (restore,) = (callback for callback in state.callbacks if isinstance(callback, RestoreRNG))
        assert restore.trainer is not None
        self.found.append(composer_compat.holds_random_state(restore.trainer))


def resumed(path: str) -> tuple[list[bool], int]:
    """What Look finds after a resume, and how many barriers a save of one rank has."""
    overrides = ["save_interval=1ba", "eval_loader=null", "autoresume=true", "scheduler.t_warmup=0ba"]
    fit(read_config(path, [*overrides, "max_duration=1ba"]))
    look, barriers, real = Look(), 0, dist.barrier

    def counted(*args: Any) -> None:
        nonlocal barriers
        barriers += any(frame.function == "_save_checkpoint" and "utils" in frame.filename for frame in inspect.stack())
        real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.dist, "barrier", counted)
        fit(read_config(path, [*overrides, "max_duration=3ba"]), callbacks=[look])
    return look.found, barriers


@pytest.mark.timeout(200)
@pytest.mark.ranks
def test_a_run_shows_what_the_probes_say_of_random_state_and_saving(tmp_path: Path) -> None:
    ((waits, barriers),) = run_ranks(resumed, 1, write_toy_run(tmp_path))
    assert waits == [True, False], "Composer restores it by itself: RestoreRNG can go"
    assert bool(barriers) == composer_compat.saving_ends_with_barrier()


def test_a_saver_forgets_what_earlier_starts_saved_until_it_is_told(tmp_path: Path) -> None:
    assert composer_compat.forgets_checkpoints(), "Composer remembers them by itself: the patch can go"
    saver = CheckpointSaver(str(tmp_path))
    (tmp_path / "ep0-ba1").mkdir()
    assert composer_compat.remember_checkpoints(saver, [tmp_path / "ep0-ba1", tmp_path / "ep0-ba2-rank0.pt"])
    assert saver.saved_checkpoints == [str(tmp_path / "ep0-ba1/__0_0.distcp"), str(tmp_path / "ep0-ba2-rank0.pt")]


def test_a_composer_that_needs_no_patch_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for probe in ("shards_again", "forgets_checkpoints", "saving_ends_with_barrier"):
        monkeypatch.setattr(composer_compat, probe, lambda: False)
    monkeypatch.setattr(dist, "barrier", lambda: pytest.fail("a barrier where nobody waits"))
    own, saver = prepare_distributed.parallelize_composer_model, CheckpointSaver(str(tmp_path))
    assert not composer_compat.leave_sharded_models()
    assert not composer_compat.remember_checkpoints(saver, [tmp_path])
    assert not composer_compat.join_ranks_after_failed_save()
    assert not composer_compat.restore_random_state(cast(Trainer, SimpleNamespace(_rng_state=None)))
    assert prepare_distributed.parallelize_composer_model is own
    assert saver.saved_checkpoints == []
