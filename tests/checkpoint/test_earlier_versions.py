"""Checkpoints that Composer's own saver wrote, as earlier versions did: one file, or a folder without a manifest.

tests/run/test_golden.py resumes a folder that an earlier version wrote.
"""

import contextlib
import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import checkpoint

from tests.helpers.ranks import run_ranks
from tests.helpers.toy_run import write_toy_run
from tests.helpers.watched_run import run
from train.config.load import read_config
from train.run.fit import fit

COMMON = ["autoresume=true", "eval_loader=null", "save_interval=2ba", "max_duration=4ba"]


class AsComposer(Callback):
    """Also saves the checkpoint of the second batch with Composer's function."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value == 2:
            checkpoint.save_checkpoint(state, str(self.folder / "ep{epoch}-ba{batch}-rank{rank}.pt"))


def resumed(path: str) -> list[tuple[dict[str, Any], str]]:
    """Run and save a single file, then resume from it: replicated, sharded, and from a file with code in it."""
    folder = Path(path).parent
    fit(read_config(path, [*COMMON, "fsdp_config=null", "run_name=first"]), callbacks=[AsComposer(folder / "file")])
    results = [(run(path, [*COMMON, "fsdp_config=null", "run_name=whole"]), "")]
    for name, kind in (("replicated", "fsdp_config=null"), ("sharded", "fsdp_config={}")):
        shutil.copytree(folder / "file", folder / name)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            results.append((run(path, [*COMMON, kind, f"run_name={name}"]), out.getvalue()))
    return results


@pytest.mark.ranks
@pytest.mark.timeout(200)
def test_a_file_of_an_earlier_version_is_resumed_exactly(tmp_path: Path) -> None:
    (results,) = run_ranks(resumed, 1, write_toy_run(tmp_path))
    (whole, _), *others = results
    for (result, out), name in zip(others, ("replicated", "sharded"), strict=True):
        path = tmp_path / name / "ep0-ba2-rank0.pt"
        assert f"resuming from {path} (autoresume)" in " ".join(out.split())  # the console wraps lines
        assert out.count(f"{path} has no manifest (an earlier version wrote it), so it is not verified") == 1
        assert list(result["losses"]) == [3, 4]
        for key, expected in whole["weights"].items():
            torch.testing.assert_close(result["weights"][key], expected, rtol=0, atol=0, msg=key)
        assert (tmp_path / name / "ep0-ba4" / "manifest.json").is_file()
