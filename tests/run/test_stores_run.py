"""Runs whose save folder is in an object store: killed in an upload, and resumed on another machine."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from data.stores.store import open_store
from tests.helpers.ranks import run_ranks
from tests.helpers.store_faults import Fault
from tests.helpers.stores import Server, serve
from tests.helpers.toy_run import refused, write_toy_run
from tests.helpers.watched_run import run
from train.checkpoint.remote.folder import RemoteFolder
from train.checkpoint.save_folder import checkpoints
from train.checkpoint.storage.files import verify_files

pytestmark = [pytest.mark.ranks, pytest.mark.slow, pytest.mark.timeout(300)]


def run_there(environment: Mapping[str, str], path: str, overrides: list[str], kill_after: int | None = None) -> Any:
    os.environ.update(environment)  # the ranks' parent has started before the server
    return run(path, overrides, kill_after)


def refused_there(environment: Mapping[str, str], path: str, overrides: list[str]) -> str:
    os.environ.update(environment)
    return refused(path, overrides)


@pytest.fixture(scope="module")
def s3():
    with serve("s3") as served:
        yield served


@pytest.fixture(scope="module")
def gs():
    with serve("gs") as served:
        yield served


def machine(tmp_path: Path, name: str, server: Server) -> list[str]:
    """Overrides of a run on a machine of its own."""
    return [f"save_folder={server.url}/{{run_name}}", f"save_staging_folder={tmp_path / name}", "autoresume=true"]


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
    verify_files(remote.bring("ep0-ba10", tmp_path / "third", contents))
    assert {"config.yaml", "record.jsonl", "run.json"} < {*contents.beside}


def test_a_corrupt_checkpoint_in_the_store_is_passed_over(gs: Server, tmp_path: Path) -> None:
    path = write_toy_run(tmp_path)
    run_ranks(run_there, 1, gs.environment, path, [*machine(tmp_path, "first", gs), "max_duration=8ba"])
    key = "toy/ep0-ba8/__0_0.distcp"
    gs.put(key, gs.content()[key][:-1] + b"x")
    stop = [*machine(tmp_path, "second", gs), "on_corrupt_checkpoint=stop"]
    message = run_ranks(refused_there, 1, gs.environment, path, stop)[0]
    assert "ep0-ba8 is corrupt: __0_0.distcp has other bytes than were written" in message
    assert "gs://bucket/toy/ep0-ba8" in message
    exports = f"callbacks.hf_checkpointer={{save_folder: '{gs.url}/exports/{{run_name}}', save_interval: 1dur}}"
    resumed = run_ranks(run_there, 1, gs.environment, path, [*machine(tmp_path, "second", gs), exports])[0]
    assert list(resumed["losses"]) == [5, 6, 7, 8, 9, 10]
    remote = RemoteFolder(open_store(f"{gs.url}/toy"))
    (tmp_path / "third").mkdir()
    verify_files(remote.bring("ep0-ba8", tmp_path / "third", remote.look()))  # written anew
    assert "exports/toy/huggingface/ba10/config.json" in gs.content()
