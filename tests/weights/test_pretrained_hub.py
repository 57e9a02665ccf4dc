"""Weights in a repository on the hub: what is fetched, and how problems are reported."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data.base.errors import ConfigError
from tests.helpers.hub_server import Hub, Repository, serve, use_hub
from tests.helpers.stock_folder import make_stock_model, write_stock_folder
from train.hf.repository import read_values
from train.weights.pretrained import PretrainedFolder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("weights")
    write_stock_folder(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()} | {
        "modeling_dbrx.py": b"raise SystemExit",
        "pytorch_model.bin": b"\x80",
        "tokenizer.json": b"{}",
        "original/model-00001.safetensors.tar": b"1",
    }


@pytest.fixture
def hub(tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    pickles = {name: content for name, content in files.items() if "safetensors" not in name}
    repositories = {
        "acme/dbrx": Repository(files),
        "acme/closed": Repository(files, gated=True),
        "acme/pickles": Repository(pickles),
        "acme/bare": Repository({"README.md": b"#", "model.safetensors": b"1"}),
    }
    with serve(repositories) as served:
        use_hub(monkeypatch, served.endpoint, tmp_path)
        yield served


def fetched(hub: Hub) -> set[str]:
    return {path.rpartition("/")[2] for path in hub.requests if path.startswith("GET /acme/") and "/resolve/" in path}


def refused(name: str) -> str:
    with pytest.raises(ConfigError) as caught:
        PretrainedFolder.open(name)
    assert str(caught.value).startswith(f"model.pretrained_model_name_or_path is {name!r}, ")
    return str(caught.value)


def test_reading_a_yaml_fetches_only_the_config(hub: Hub) -> None:
    assert read_values("acme/dbrx")[0]["d_model"] == 32
    assert fetched(hub) == {"config.json"}


def test_code_and_pickles_are_not_fetched(hub: Hub, files: dict[str, bytes]) -> None:
    opened, out = PretrainedFolder.open("acme/dbrx"), torch.empty(97, 32)
    opened.rows("lm_head.weight", 0, 97, out)
    assert torch.equal(out, make_stock_model().lm_head.weight)
    assert fetched(hub) == {name for name in files if name.endswith((".json", ".safetensors"))}


def test_a_gated_repository_without_a_token(hub: Hub) -> None:
    assert "a gated repository: request access on the model's page" in refused("acme/closed")
    with pytest.raises(ConfigError, match="a gated repository"):
        read_values("acme/closed")


def test_repositories_without_required_files_are_refused(hub: Hub) -> None:
    assert "its weights are only available as pickles (pytorch_model.bin)" in refused("acme/pickles")
    assert "it has no config.json" in refused("acme/bare")
    assert "a local folder nor a model on the hub that you can access" in refused("acme/none")
    message = refused("some/where/else")
    assert "this folder does not exist (relative to the working directory, " in message
    assert "the name of a model on the hub has the form" in message


def test_the_cache_is_used_offline(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PretrainedFolder.open("acme/dbrx")
    n_requests = len(hub.requests)
    use_hub(monkeypatch, hub.endpoint, tmp_path, offline=True)
    assert PretrainedFolder.open("acme/dbrx").model.d_model == 32
    assert len(hub.requests) == n_requests
    message = refused("acme/other")
    assert "nor in the local cache of the hub; HF_HUB_OFFLINE is set: download the model on a machine" in message
