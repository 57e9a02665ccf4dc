"""Errors about an object store in a config are reported before anything is allocated."""

from pathlib import Path

import pytest

from data.base.errors import ConfigError, Problems
from data.stores.gcs import GCSBucket
from data.stores.store import open_store
from tests.helpers.saved_checkpoints import flip, write_save_folder
from tests.helpers.stores import Server, serve, shorten_waits
from tests.helpers.toy_run import write_toy_run
from train.checkpoint.remote.folder import RemoteFolder
from train.checkpoint.remote.lease import take
from train.checkpoint.remote.staging import fetch_checkpoint, look, open_save_folder, planned_folder
from train.checkpoint.save_folder import checkpoints, local_folder
from train.checkpoint.storage.files import verify_files
from train.checkpoint.storage.manifest import check_files, read_manifest
from train.config.load import read_config
from train.config.schema import TrainConfig
from train.dry_run.opening import opened
from train.run.inputs import open_inputs

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def server(monkeypatch):
    shorten_waits(monkeypatch)
    with serve("gs") as served:
        yield served


def config_of(tmp_path: Path, *overrides: str) -> TrainConfig:
    return read_config(write_toy_run(tmp_path), [f"save_staging_folder={tmp_path / 'staging'}", *overrides])


def send(server: Server, folder: Path, *batches: int, run: str = "toy") -> RemoteFolder:
    remote = RemoteFolder(open_store(f"{server.url}/{run}"))
    write_save_folder(folder, *batches)
    for batch in batches:
        remote.send(folder / f"ep0-ba{batch}", f"ep0-ba{batch}", confirm=lambda: None)
    return remote


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["save_folder=oci://bucket/x"], "save_folder is 'oci://bucket/x', but the supported object stores"),
        (["save_folder=s3://me:word@bucket/x"], "save_folder is 's3://***@bucket/x', but credentials are not allowed"),
        (
            ["save_folder=gs://none/x"],
            "save_folder cannot be used: gs://none/x cannot be listed: the bucket does not exist",
        ),
        (["load_path=hf://a/b"], "load_path is 'hf://a/b', but the supported object stores"),
        (["load_path=gs://bucket/x/ep0-ba1"], "load_path is 'gs://bucket/x/ep0-ba1', but there is no checkpoint"),
        (
            ["callbacks.hf_checkpointer={save_folder: 'gs://none/x', save_interval: 1dur}"],
            "callbacks.hf_checkpointer.save_folder cannot be used: gs://none/x/huggingface/ cannot be listed: the ",
        ),
    ],
)
def test_refused(server: Server, tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        open_inputs(config_of(tmp_path, *overrides))
    assert message in str(error.value)
    assert "word" not in str(error.value)


def test_without_credentials(tmp_path: Path, monkeypatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ConfigError, match="save_folder is 's3://bucket/x', but no credentials for S3 found: "):
        open_inputs(config_of(tmp_path, "save_folder=s3://bucket/x"))


def open_for_dry_run(config: TrainConfig) -> None:
    with opened(config, Problems(), rehash=False):
        pass


@pytest.mark.parametrize("open_all", [open_inputs, open_for_dry_run])
def test_a_folder_with_checkpoints_or_an_owner(server: Server, tmp_path: Path, open_all) -> None:
    remote = send(server, tmp_path / "run", 2, 4)
    config = config_of(tmp_path, "save_folder=gs://bucket/{run_name}")
    with pytest.raises(ConfigError, match=r"gs://bucket/toy contains 2 checkpoint\(s\), the newest ep0-ba4: set"):
        open_all(config)
    over = config_of(
        tmp_path, "save_folder=gs://bucket/{run_name}", "save_overwrite=true", "load_path=gs://bucket/toy/latest"
    )
    with pytest.raises(ConfigError, match="load_path is 'gs://bucket/toy/latest', which save_overwrite would delete"):
        open_all(over)
    take(remote, "mine")
    with pytest.raises(ConfigError, match="save_folder is gs://bucket/toy, which belongs to run 'mine'"):
        open_all(config)


def test_a_staging_folder_of_another_run_is_emptied(server: Server, tmp_path: Path, capsys) -> None:
    config = config_of(tmp_path, "save_folder=gs://bucket/{run_name}", "autoresume=true")
    folder, remote = local_folder(config, "toy"), open_save_folder(config, "toy")
    assert folder is not None
    assert remote is not None
    write_save_folder(folder, 2)
    assert look(remote, folder, config).committed == ()
    assert checkpoints(folder) == []


def test_load_path_is_fetched_once_and_again_when_it_has_changed(server: Server, tmp_path: Path) -> None:
    send(server, tmp_path / "run", 2, 4)
    root, sent = str(tmp_path / "staging"), len(server.content())
    found = fetch_checkpoint(f"{server.url}/toy/latest", root, "load_path")
    assert found.name == "ep0-ba4"
    verify_files(found)
    inode = (found / "__0_0.distcp").stat().st_ino
    fetch_checkpoint.cache_clear()
    assert fetch_checkpoint(f"{server.url}/toy/ep0-ba4", root, "load_path") == found
    assert (found / "__0_0.distcp").stat().st_ino == inode
    flip(found / "manifest.json", 200)  # as if another version had been uploaded since
    fetch_checkpoint.cache_clear()
    verify_files(fetch_checkpoint(f"{server.url}/toy/ep0-ba4", root, "load_path"))
    assert len(server.content()) == sent
    with pytest.raises(
        ConfigError, match=r"it must be the URL of a checkpoint, such as gs://bucket/toy/ep0-ba4 or gs://bucket/toy/la"
    ):
        fetch_checkpoint(f"{server.url}/toy", root, "load_path")
    with pytest.raises(ConfigError, match="this checkpoint does not exist; the newest checkpoint there is ep0-ba4"):
        fetch_checkpoint(f"{server.url}/toy/ep0-ba9", root, "load_path")


def test_a_plan_fetches_no_tensors(server: Server, tmp_path: Path, monkeypatch) -> None:
    send(server, tmp_path / "run", 2, 4).store.send([(tmp_path / "run" / "config.yaml", "config.yaml")])
    fetched = []
    fetch = GCSBucket.fetch
    monkeypatch.setattr(GCSBucket, "fetch", lambda self, key, path: [fetched.append(key), fetch(self, key, path)])
    config = config_of(tmp_path, "save_folder=gs://bucket/{run_name}", "autoresume=true")
    with planned_folder(config, "toy") as folder:
        assert folder is not None
        (found,) = checkpoints(folder)
        manifest = read_manifest(found)
        assert manifest is not None
        check_files(found, manifest)
        assert (found / "state.json").read_text() == "{}"
    assert not folder.exists()
    assert sorted(key.removeprefix("toy/") for key in fetched) == [
        "config.yaml",
        *(f"ep0-ba4/{name}" for name in (".metadata", "manifest.json", "state.json")),
    ]
