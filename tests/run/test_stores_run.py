"""Runs whose save folder is in an object store: killed in an upload, and resumed on another machine."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.core import Callback, State
from composer.loggers import Logger

from data.base.errors import ConfigError, Problems
from data.stores.store import open_store
from tests.helpers.ranks import run_ranks
from tests.helpers.store_faults import Fault
from tests.helpers.stores import Server, serve
from tests.helpers.toy_run import write_toy_run
from tests.helpers.watched_run import run
from train.callbacks.checkpoint_saver import CheckpointSaver
from train.checkpoint.remote.folder import RemoteFolder
from train.checkpoint.remote.staging import planned_folder
from train.checkpoint.save_folder import checkpoints
from train.checkpoint.storage.files import verify_files
from train.config.load import read_config
from train.dry_run.opening import opened
from train.run.fit import fit
from train.run.inputs import open_inputs
from train.supervision.exit_codes import ExitCode, RunStopped
from train.weights.start import find_start

pytestmark = [pytest.mark.ranks, pytest.mark.slow, pytest.mark.timeout(300)]


def run_there(environment: Mapping[str, str], path: str, overrides: list[str], kill_after: int | None = None) -> Any:
    os.environ.update(environment)  # the process that forks the ranks was started before the server
    return run(path, overrides, kill_after)


class StopAt(Callback):
    def __init__(self, batch: int) -> None:
        self.batch = batch

    def batch_start(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value == self.batch:
            (saver,) = [each for each in state.callbacks if isinstance(each, CheckpointSaver)]
            raise RunStopped(ExitCode.RESUMABLE, f"saved in {saver.wait()}")


def stopped_there(environment: Mapping[str, str], path: str, overrides: list[str], batch: int) -> str:
    os.environ.update(environment)
    try:
        fit(read_config(path, overrides), callbacks=[StopAt(batch)])
    except RunStopped as stop:
        return f"{stop.code}: {stop}"
    return ""


@pytest.fixture(scope="module")
def s3():
    with serve("s3") as served:
        yield served


@pytest.fixture(scope="module")
def gs():
    with serve("gs") as served:
        yield served


def machine(tmp_path: Path, name: str, server: Server) -> list[str]:
    """Return the overrides of a run on a separate machine."""
    folders = [f"save_folder={server.url}/{{run_name}}", f"save_staging_folder={tmp_path / name}", "log_folder=null"]
    return [*folders, "autoresume=true"]


def test_a_run_killed_in_an_upload_ends_as_if_it_had_not_been(s3: Server, tmp_path: Path) -> None:
    path, keep = write_toy_run(tmp_path), ["save_num_checkpoints_to_keep=1"]
    whole = run_ranks(run, 2, path, ["run_name=whole"])[0]
    s3.faults += [Fault("PUT", "ep0-ba8/__0_0", 1, "slow", 60.0)]
    with pytest.raises(RuntimeError, match="exit codes"):
        run_ranks(run_there, 2, s3.environment, path, [*machine(tmp_path, "first", s3), *keep], 9)
    s3.faults.clear()
    remote = RemoteFolder(open_store(f"{s3.url}/toy"))
    assert remote.look().committed == ("ep0-ba4",)
    (staged,) = (tmp_path / "first").iterdir()
    assert [found.name for found in checkpoints(staged)] == ["ep0-ba8"]

    resumed = run_ranks(run_there, 2, s3.environment, path, [*machine(tmp_path, "second", s3), *keep])[0]
    assert resumed["losses"] == {batch: value for batch, value in whole["losses"].items() if batch > 4}
    assert resumed["weights"].keys() == whole["weights"].keys()
    for name, expected in whole["weights"].items():
        assert torch.equal(resumed["weights"][name], expected), name
    contents = remote.look()
    assert (contents.committed, contents.incomplete) == (("ep0-ba10",), ())
    (tmp_path / "third").mkdir()
    verify_files(remote.fetch_verified("ep0-ba10", tmp_path / "third", contents))
    assert {"config.yaml", "record.jsonl", "metrics.jsonl", "run.json"} < {*contents.beside}


@pytest.mark.proof
def test_a_failed_export_leaves_no_checkpoint_unsent(s3: Server, tmp_path: Path) -> None:
    s3.faults += [Fault("PUT", "huggingface/ba10", 100, "denied"), Fault("PUT", "ep0-ba10/__0_0", 1, "slow", 3.0)]
    exports = f"callbacks.hf_checkpointer={{save_folder: '{s3.url}/hf', save_interval: 1dur}}"
    overrides = [*machine(tmp_path, "first", s3), "run_name=exported", exports]
    with pytest.raises(RuntimeError, match="not every checkpoint was exported"):
        run_ranks(run_there, 1, s3.environment, write_toy_run(tmp_path), overrides)
    s3.faults.clear()
    assert RemoteFolder(open_store(f"{s3.url}/exported")).look().committed[-1] == "ep0-ba10"


@pytest.mark.proof
def test_a_corrupt_checkpoint_in_the_store_is_skipped(gs: Server, tmp_path: Path) -> None:
    path = write_toy_run(tmp_path)
    gs.faults += [Fault("POST", "", 1, "slow", 1.0)]
    # Before a resumable run ends, all checkpoints are uploaded.
    assert run_ranks(stopped_there, 1, gs.environment, path, machine(tmp_path, "first", gs), 8) == [
        "75: saved in gs://bucket/toy/ep0-ba8"
    ]
    key = "toy/ep0-ba8/__0_0.distcp"
    gs.put(key, gs.content()[key][:-1] + b"x")
    stop = [*machine(tmp_path, "second", gs), "on_corrupt_checkpoint=stop"]
    with pytest.raises(
        ConfigError, match=r"is corrupt: __0_0.distcp does not match its hash.*\(in gs://bucket/toy/ep0-ba8\)"
    ):
        open_inputs(read_config(path, stop))
    resumed = run_ranks(run_there, 1, gs.environment, path, machine(tmp_path, "second", gs))[0]
    assert list(resumed["losses"]) == [5, 6, 7, 8, 9, 10]
    remote = RemoteFolder(open_store(f"{gs.url}/toy"))
    (tmp_path / "third").mkdir()
    verify_files(remote.fetch_verified("ep0-ba8", tmp_path / "third", remote.look()))  # written again

    planned = read_config(path, machine(tmp_path, "planned", gs))
    with planned_folder(planned, "toy") as folder:
        start = find_start(planned, folder)
        assert start is not None
        assert (start.path.name, start.data_state is not None) == ("ep0-ba10", True)
    with opened(planned, Problems(), rehash=False) as inputs:
        assert (inputs.first_batch, inputs.at_the_end) == (10, True)
    assert not (tmp_path / "planned").exists()

    others = ["run_name=other", "load_path=gs://bucket/toy/latest", f"save_staging_folder={tmp_path / 'fourth'}"]
    start = open_inputs(read_config(path, [*others, "load_weights_only=true"])).start
    assert start is not None
    assert start.path.name == "ep0-ba10"
