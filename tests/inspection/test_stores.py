"""scripts/checkpoint.py with checkpoints in object stores."""

import json
from pathlib import Path

import pytest

from data.stores.store import open_store
from tests.helpers.load_script import load_script
from tests.helpers.saved_checkpoints import write_save_folder
from tests.helpers.stores import Server, serve, shorten_waits
from train.checkpoint.owner import this_owner
from train.checkpoint.remote.folder import OWNER, RemoteFolder

pytestmark = pytest.mark.timeout(60)
main = load_script("checkpoint").main


@pytest.fixture
def server(monkeypatch, tmp_path: Path):
    shorten_waits(monkeypatch)
    monkeypatch.setattr("train.inspection.stores.STAGING", tmp_path / "staging")
    with serve("gs") as served:
        yield served


@pytest.fixture
def remote(server: Server, tmp_path: Path) -> RemoteFolder:
    remote = RemoteFolder(open_store(f"{server.url}/run"))
    folder = write_save_folder(tmp_path / "run", 10, 20, 30)
    for name in ("ep0-ba10", "ep0-ba20", "ep0-ba30"):
        remote.send(folder / name, name, confirm=lambda: None)
    server.delete("run/ep0-ba30/manifest.json")
    return remote


def test_ls(remote: RemoteFolder, capsys: pytest.CaptureFixture[str]) -> None:
    remote.store.write(OWNER, json.dumps({"owner": this_owner("mine").decode()}).encode())
    assert main(["ls", remote.url, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert [(found["name"], found["latest"]) for found in values["checkpoints"]] == [
        ("ep0-ba10", False),
        ("ep0-ba20", True),
    ]
    assert values["checkpoints"][0]["size"] > 4000
    assert values["leftovers"] == [".part-ep0-ba30"]
    assert values["owner"]["name"].startswith("run 'mine'")
    assert main(["ls", f"{remote.url}/ep0-ba10"]) == 0
    assert "ep0-ba20" not in capsys.readouterr().out
    assert main(["ls", "gs://bucket/none"]) == 2
    assert "gs://bucket/none contains no checkpoint" in capsys.readouterr().err


def test_verify(remote: RemoteFolder, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.put("run/ep0-ba10/__0_0.distcp", b"x" * 4000)
    assert main(["verify", remote.url]) == 2
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("gs://bucket/run/ep0-ba10: corrupt: __0_0.distcp does not match its hash")
    assert second.startswith("gs://bucket/run/ep0-ba20: verified, 3 files")
    assert list((tmp_path / "staging").iterdir()) == []


def test_other_commands_refuse_object_stores(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["prune", "s3://b/x", "--keep", "1"], ["diff", "s3://b/x", "."]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert "s3://b/x is in an object store: only ls and verify support object stores" in capsys.readouterr().err
