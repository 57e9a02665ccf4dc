"""Weights that are not finite: neither saved nor loaded by a run, which names tensor and checkpoint."""

from pathlib import Path

import pytest
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch.distributed.tensor import DTensor

from tests.helpers.faults import run_with
from tests.helpers.ranks import run_ranks
from tests.helpers.toy_run import refused, write_toy_run
from train.callbacks import checkpoint_saver
from train.checkpoint.save_folder import checkpoints
from train.checkpoint.storage.finite import NotFiniteError, keys_not_finite

NAME = "transformer.blocks.0.ffn.experts.mlp.w1"
SMALL = ["eval_loader=null", "model.n_layers=1", "max_duration=4ba", "save_interval=2ba"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_single_number_is_found(dtype: torch.dtype, number: float) -> None:
    tensors = {name: torch.zeros(7, 5, dtype=dtype) for name in "abc"}
    assert keys_not_finite(tensors) == ()
    tensors["b"][6, 4] = number
    others = {"empty": torch.zeros(0, 5), "step": torch.tensor(3.0), "packed": torch.zeros(4, dtype=torch.uint8)}
    assert keys_not_finite(others | tensors) == ("b",)


def test_large_numbers_are_finite() -> None:
    assert keys_not_finite({"a": torch.full((1000,), 3e38)}) == ()


def test_the_error_survives_a_pickle_between_ranks(tmp_path: Path) -> None:
    error = NotFiniteError(tmp_path / "ep0-ba4", ("a", "b"))
    function, arguments = error.__reduce__()
    assert str(function(*arguments)) == str(error)


class Diverge(Callback):
    """Sets a weight on the last rank to NaN after batch 2."""

    def batch_end(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value == 2 and dist.get_global_rank() == dist.get_world_size() - 1:
            (param,) = [param for name, param in state.model.named_parameters() if name.endswith(NAME)]
            with torch.no_grad():
                (param.to_local() if isinstance(param, DTensor) else param)[-1, -1] = float("nan")


def all_refused(path: str) -> dict[str, str]:
    """The messages of a save, and of each use of a checkpoint that was saved anyway. tests/export covers exports."""
    saved = run_with(path, [*SMALL, "run_name=refused"], Diverge())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_saver, "_stop_unless_finite", lambda *args: None)
        run_with(path, [*SMALL, "run_name=saved"], Diverge())
    checkpoint = Path(path).parent / "saved" / "ep0-ba2"
    weights = [f"load_path={checkpoint}", "load_weights_only=true", "run_name=other"]
    return {
        "save": str(saved.stopped),
        "resume": refused(path, [*SMALL, "run_name=saved", "autoresume=true", "save_interval=4ba"]),
        "load_path": refused(path, [*SMALL, *weights]),
    }


@pytest.mark.ranks
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path: Path) -> None:
    path = write_toy_run(tmp_path)
    messages, other = run_ranks(all_refused, 2, path)
    assert messages == other
    assert "ep0-ba2 is not saved" in messages["save"]
    assert checkpoints(tmp_path / "refused") == []
    checkpoint = tmp_path / "saved" / "ep0-ba2"
    for use in ("resume", "load_path"):
        assert f"NaN or infinite numbers in checkpoint {checkpoint}" in messages[use], use
    assert all(NAME in message for message in messages.values())
