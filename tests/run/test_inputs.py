"""Each rank opens the inputs of a run once, before the ranks wait for each other in a collective."""

import importlib
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.opened_files import opened_files
from tests.helpers.ranks import run_ranks
from tests.helpers.toy_run import write_toy_run
from tests.helpers.watched_run import run
from train import main
from train.config.load import load_config
from train.run.inputs import open_inputs, starting_from
from train.weights.start import Start, find_start

DIST_TIMEOUT, PREPARATION = 5, 8
"""In seconds."""
OPENING = ("build_tokenizer", "find_source", "find_start", "open_weights")


def opened_by_main(path: str) -> list[str]:
    """Return the files that a run from the command line opens."""
    found: list[str] = []

    def counted(name: str) -> Any:
        real = getattr(importlib.import_module("train.run.inputs"), name)
        return lambda *args, **settings: (found.append(name), real(*args, **settings))[1]

    with pytest.MonkeyPatch.context() as patch:
        for name in OPENING:
            patch.setattr(f"train.run.inputs.{name}", counted(name))
        assert main.main([path, "max_duration=2ba"]) == 0
    return sorted(found)


@pytest.mark.ranks
def test_everything_is_opened_once(tmp_path: Path) -> None:
    (found,) = run_ranks(opened_by_main, 1, write_toy_run(tmp_path))
    assert found == sorted([*OPENING, "find_source"])  # once for training and once for evaluation


def test_a_second_start_reads_no_byte_of_the_data(tmp_path: Path) -> None:
    config = load_config(write_toy_run(tmp_path)).config
    data = [str(tmp_path / f"{name}.jsonl") for name in ("train", "eval")]
    for file in data:
        os.utime(file, (time.time() - 3600,) * 2)
    open_inputs(config)
    for rehash in (False, True):
        with opened_files() as opened:
            open_inputs(config, rehash=rehash)
        assert [file in opened for file in data] == [rehash, rehash]


@pytest.mark.ranks
def test_changing_the_start_does_not_reopen_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_toy_run(tmp_path)
    run_ranks(run, 1, path, ["max_duration=4ba"])
    config = load_config(path, ["autoresume=true", "run_name=other"]).config
    inputs = open_inputs(config)
    start = find_start(config, tmp_path / "toy")
    assert isinstance(start, Start)
    monkeypatch.setattr("train.planning.run_data.open_streams", lambda *_: pytest.fail("the data was opened again"))
    other = starting_from(inputs, config, "toy", start)
    assert (inputs.start, inputs.folder, inputs.data.clock.batches("1dur")) == (None, tmp_path / "other", 10)
    assert (other.start, other.folder, other.resuming) == (start, tmp_path / "toy", True)
    assert other.data.streams is inputs.data.streams
    assert starting_from(inputs, config, "other", None).data is inputs.data


def run_apart(path: str, overrides: list[str]) -> dict[str, Any]:
    """Like nodes without a shared disk: each rank has its own cache, and only rank 0 finds checkpoints."""
    rank = os.environ["RANK"]
    with pytest.MonkeyPatch.context() as patch:
        if rank != "0":
            patch.setattr("train.run.inputs.find_start", lambda *_, **__: None)
        return run(path, [*overrides, f"train_loader.dataset.cache_dir={Path(path).parent}/cache-{rank}"])


@pytest.mark.ranks
@pytest.mark.slow
def test_all_ranks_take_the_checkpoint_that_rank_0_finds(tmp_path: Path) -> None:
    path, common = write_toy_run(tmp_path), ["autoresume=true", "save_interval=2ba", "eval_loader=null"]
    run_ranks(run, 2, path, [*common, "max_duration=2ba"])
    resumed = run_ranks(run_apart, 2, path, [*common, "max_duration=4ba"])
    assert [list(rank["losses"]) for rank in resumed] == [[3, 4], [3, 4]]


_slept: list[bool] = []


def slowly(row: dict[str, str]) -> dict[str, str]:
    if not _slept and os.environ["RANK"] in os.environ["SLOW_RANKS"]:
        time.sleep(PREPARATION)
    _slept.append(True)
    return row


def run_slowly(path: str, overrides: list[str], slow_ranks: str) -> list[int]:
    os.environ["SLOW_RANKS"] = slow_ranks
    return list((run_apart if len(slow_ranks) == 1 else run)(path, overrides)["losses"])


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize(
    "slow_ranks",
    [
        pytest.param("01", id="one node", marks=pytest.mark.proof),
        pytest.param("0", id="two nodes, 0 slow", marks=pytest.mark.proof),
        pytest.param("1", id="two nodes, 1 slow"),
    ],
)
def test_a_preparation_longer_than_dist_timeout_ends_no_run(tmp_path: Path, slow_ranks: str) -> None:
    overrides = [f"dist_timeout={DIST_TIMEOUT}", "train_loader.dataset.preprocessing_fn=tests.run.test_inputs:slowly"]
    overrides += ["train_loader.dataset.prepare_workers=1", "max_duration=2ba", "eval_loader=null", "save_folder=null"]
    assert run_ranks(run_slowly, 2, write_toy_run(tmp_path, 40), overrides, slow_ranks) == [[1, 2], [1, 2]]
