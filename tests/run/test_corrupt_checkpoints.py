"""A run never resumes from a corrupt checkpoint: it falls back to the one before it, or ends."""

import contextlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.utils import dist

from data.base.errors import ConfigError
from tests.helpers.ranks import run_ranks
from tests.helpers.toy_run import write_toy_run
from tests.helpers.watched_run import run
from train.checkpoint.save_folder import checkpoints
from train.checkpoint.saving import pruning
from train.checkpoint.storage.files import corruption, verify_files
from train.checkpoint.storage.manifest import CorruptCheckpointError
from train.config.load import read_config
from train.run.fit import fit

pytestmark = [pytest.mark.ranks, pytest.mark.slow]

COMMON = ["autoresume=true", "eval_loader=null", "save_interval=2ba"]


def flip(path: Path, where: float = 0.5) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 4
    path.write_bytes(data)


FAULTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "moments": ("__1_0.distcp does not match its hash in bytes [", lambda six: flip(six / "__1_0.distcp", 0.9)),
    "swapped": (
        "__0_0.distcp does not match its hash in bytes [",
        lambda six: shutil.copy(six.with_name("ep0-ba4") / "__0_0.distcp", six),
    ),
    "config": ("config.yaml does not match its hash", lambda six: flip(six / "config.yaml")),
}
"""Faults found before and while tensors are loaded. Other files: tests/checkpoint/storage, bench_faults.py."""


def _with_fault(folder: Path, name: str, fault: Callable[[Path], object]) -> None:
    """On rank 0, copy the run and put a fault into its newest checkpoint."""
    if dist.get_global_rank() == 0:
        shutil.copytree(folder / "begun", folder / name, symlinks=True)
        fault(folder / name / "ep0-ba6")
    dist.barrier()


def _resume(path: str, overrides: list[str]) -> tuple[dict[str, Any] | str, str]:
    """Return the run's result or its error, and its output."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            return run(path, [*COMMON, *overrides]), out.getvalue()
        except ConfigError as error:
            return str(error), out.getvalue()


def all_faults(path: str) -> dict[str, Any]:
    folder = Path(path).parent
    results: dict[str, Any] = {"whole": run(path, [*COMMON, "run_name=whole", "max_duration=8ba"])}
    if dist.get_global_rank() == 0:
        shutil.copytree(folder / "whole", folder / "begun", symlinks=True)
        shutil.rmtree(folder / "begun" / "ep0-ba8")
    dist.barrier()
    for name, (_, fault) in FAULTS.items():
        _with_fault(folder, name, fault)
        results[name] = _resume(path, [f"run_name={name}", "max_duration=8ba"])
    _with_fault(folder, "finished", FAULTS["moments"][1])
    results["finished"] = _resume(path, ["run_name=finished", "max_duration=6ba"])
    _with_fault(folder, "stop", FAULTS["moments"][1])
    results["stop"] = _resume(path, ["run_name=stop", "max_duration=8ba", "on_corrupt_checkpoint=stop"])

    def everywhere(six: Path) -> None:
        for checkpoint in checkpoints(six.parent):
            flip(checkpoint / "__0_0.distcp")

    _with_fault(folder, "none", everywhere)
    results["none"] = _resume(path, ["run_name=none", "max_duration=8ba"])
    named = folder / "weights-only"
    if dist.get_global_rank() == 0:
        shutil.copytree(folder / "begun", named, symlinks=True)
        flip(named / "ep0-ba6" / "__1_0.distcp")
    dist.barrier()
    load = [f"load_path={named / 'ep0-ba6'}", "load_weights_only=true", "run_name=other", "max_duration=2ba"]
    results["load_path"] = _resume(path, load)
    return results


@pytest.mark.timeout(300)
def test_a_fault_ends_in_a_fallback_to_the_clean_run_or_in_an_error(tmp_path: Path) -> None:
    results, others = run_ranks(all_faults, 2, write_toy_run(tmp_path), timeout=280)
    whole = results.pop("whole")
    for name, (message, _) in FAULTS.items():
        result, out = results[name]
        assert isinstance(result, dict), result
        assert f"warning: checkpoint {tmp_path / name / 'ep0-ba6'} is corrupt: {message}" in out
        assert "warning: RESUMING FROM AN EARLIER CHECKPOINT, ep0-ba4: later batches are trained again" in out
        assert list(result["losses"]) == [5, 6, 7, 8], name
        for key, expected in whole["weights"].items():
            assert torch.equal(result["weights"][key], expected), (name, key)
        # The corrupt checkpoint has been replaced.
        for checkpoint in checkpoints(tmp_path / name):
            verify_files(checkpoint)
    assert "of ep0-ba4" in results["swapped"][1]
    finished, out = results["finished"]
    assert list(finished["losses"]) == [5, 6], "the end of the run is read before it is called done"
    (stopped, _), (none, _), (load_path, _) = (results[key] for key in ("stop", "none", "load_path"))
    assert "__1_0.distcp does not match its hash" in stopped
    assert "(on_corrupt_checkpoint: stop): restore the checkpoint from a copy" in stopped
    assert none.startswith(f"save_folder {tmp_path / 'none'} has no checkpoint to resume from: restore")
    assert [f"ep0-ba{batch} is corrupt: __0_0" in none for batch in (2, 4, 6)] == [True] * 3
    assert load_path.startswith(f"checkpoint {tmp_path / 'weights-only' / 'ep0-ba6'} is corrupt: __1_0.distcp does")
    assert [others[key][0] for key in ("stop", "none", "load_path")] == [stopped, none, load_path]


def newest_is_corrupt(path: str) -> tuple[list[str], list[str], str]:
    """Return which checkpoints remain of a run that keeps one, with and without damage before each is read back."""
    folder = Path(path).parent
    short = ["eval_loader=null", "save_interval=2ba", "save_num_checkpoints_to_keep=1", "autoresume=true"]
    fit(read_config(path, [*short, "max_duration=2ba"]))

    def damaged(checkpoint: Path, files: tuple[str, ...]) -> CorruptCheckpointError | None:
        flip(checkpoint / "__0_0.distcp")
        return corruption(checkpoint, files)

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(pruning, "corruption", damaged)
        fit(read_config(path, [*short, "max_duration=4ba"]))
    damaged_left = [found.name for found in checkpoints(folder / "toy")]
    fit(read_config(path, [*short, "max_duration=6ba"]))
    return damaged_left, [found.name for found in checkpoints(folder / "toy")], out.getvalue()


def test_the_last_verified_checkpoint_is_never_deleted(tmp_path: Path) -> None:
    ((damaged, left, out),) = run_ranks(newest_is_corrupt, 1, write_toy_run(tmp_path))
    assert damaged == ["ep0-ba2", "ep0-ba4"]
    assert "ep0-ba4 is corrupt: __0_0.distcp does not match its hash" in out
    assert "Earlier checkpoints are kept" in out
    assert left == ["ep0-ba6"]
