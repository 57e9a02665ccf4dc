"""Save folders in object stores: commits, fetches, and defects of checkpoints."""

from pathlib import Path

import pytest

from data.stores.store import StoreError, open_store
from tests.helpers.saved_checkpoints import flip, write_save_folder
from tests.helpers.store_faults import Fault
from tests.helpers.stores import Server, serve, shorten_waits
from train.checkpoint.remote.folder import RemoteFolder, files_beside
from train.checkpoint.retention import KEEP, Retention
from train.checkpoint.save_folder import LOGS
from train.checkpoint.storage.files import verify_files
from train.checkpoint.storage.manifest import CorruptCheckpointError

pytestmark = pytest.mark.timeout(60)
of_one_store = pytest.mark.parametrize("served", ["s3"], indirect=True)
"""For tests of code that does not depend on the store."""


@pytest.fixture(scope="module", params=["s3", "gs"])
def served(request):
    with serve(request.param) as server, pytest.MonkeyPatch.context() as patch:
        shorten_waits(patch)
        yield server, RemoteFolder(open_store(f"{server.url}/run"))


@pytest.fixture
def server(served):
    yield served[0]
    served[0].faults.clear()
    for key in served[0].content():
        served[0].delete(key)


@pytest.fixture
def remote(served, server) -> RemoteFolder:
    return served[1]


def send(remote: RemoteFolder, folder: Path, *batches: int) -> None:
    write_save_folder(folder, *batches)
    for batch in batches:
        remote.send(folder / f"ep0-ba{batch}", f"ep0-ba{batch}", confirm=lambda: None)


def test_the_manifest_is_sent_last_and_deleted_first(remote: RemoteFolder, server: Server, tmp_path: Path) -> None:
    before, deleted = len(server.written()), len(server.deleted())
    send(remote, tmp_path / "run", 5)
    sent = server.written()[before:]
    assert len(sent) == 4
    assert sent[-1] == "run/ep0-ba5/manifest.json"
    deleted = len(server.deleted())
    remote.remove("ep0-ba5", remote.look())
    assert server.deleted()[deleted] == "run/ep0-ba5/manifest.json"
    assert server.content() == {}


def test_a_sent_checkpoint_is_fetched_unchanged(remote: RemoteFolder, tmp_path: Path) -> None:
    folder = write_save_folder(tmp_path / "run", 5)
    (folder / "ep0-ba5" / KEEP).touch()
    remote.send(folder / "ep0-ba5", "ep0-ba5", confirm=lambda: None)
    remote.store.send(files_beside(folder))
    contents = remote.look()
    assert (contents.committed, contents.incomplete, contents.beside) == (("ep0-ba5",), (), ["config.yaml"])
    (tmp_path / "new").mkdir()
    brought = remote.fetch_verified("ep0-ba5", tmp_path / "new", contents)
    verify_files(brought)
    for path in (folder / "ep0-ba5").iterdir():
        assert (brought / path.name).read_bytes() == path.read_bytes()
    remote.fetch_beside(tmp_path / "new", contents)
    assert (tmp_path / "new" / "config.yaml").read_text() == (folder / "config.yaml").read_text()
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["config.yaml", "ep0-ba5"]


@of_one_store
def test_a_valid_local_copy_is_not_fetched_again(remote: RemoteFolder, tmp_path: Path) -> None:
    send(remote, tmp_path / "run", 5)
    contents, here = remote.look(), tmp_path / "run" / "ep0-ba5" / "__0_0.distcp"
    inode = here.stat().st_ino
    remote.fetch_verified("ep0-ba5", tmp_path / "run", contents)
    assert here.stat().st_ino == inode
    flip(here, 17)
    remote.fetch_verified("ep0-ba5", tmp_path / "run", contents)
    assert here.stat().st_ino != inode
    verify_files(here.parent)


@of_one_store
@pytest.mark.parametrize("damage", ["flipped", "missing", "truncated", "no manifest", "damaged manifest"])
def test_damage_in_the_store_is_named(remote: RemoteFolder, server: Server, tmp_path: Path, damage: str) -> None:
    send(remote, tmp_path / "run", 5)
    key = f"run/ep0-ba5/{'manifest.json' if 'manifest' in damage else '__0_0.distcp'}"
    data = server.content()[key]
    if damage in ("missing", "no manifest"):
        server.delete(key)
    else:
        server.put(key, data[:100] if damage in ("truncated", "damaged manifest") else b"x" + data[1:])
    contents = remote.look()
    if damage == "no manifest":
        assert contents.committed == ()
        assert contents.incomplete == ("ep0-ba5",)
        return
    (tmp_path / "new").mkdir()
    with pytest.raises(CorruptCheckpointError, match=rf"ep0-ba5 is corrupt.*\(in {remote.url}/ep0-ba5\)") as error:
        remote.fetch_verified("ep0-ba5", tmp_path / "new", contents)
    assert error.value.checkpoint == tmp_path / "new" / "ep0-ba5"
    assert error.value.name == key.rpartition("/")[2]
    assert list((tmp_path / "new").iterdir()) == []


def test_a_truncated_response_is_fetched_again(remote: RemoteFolder, server: Server, tmp_path: Path) -> None:
    send(remote, tmp_path / "run", 5)
    server.faults += [Fault("GET", "ep0-ba5/__0_0.distcp", 1, "cut"), Fault("GET", "ep0-ba5/state.json", 1, "reset")]
    (tmp_path / "new").mkdir()
    verify_files(remote.fetch_verified("ep0-ba5", tmp_path / "new", remote.look()))
    assert not any(fault.times for fault in server.faults)


def test_a_checkpoint_that_cannot_be_sent_is_not_committed(
    remote: RemoteFolder, server: Server, tmp_path: Path
) -> None:
    folder = write_save_folder(tmp_path / "run", 5, 6)
    sending = "POST" if server.scheme == "gs" else "PUT"
    if server.scheme == "s3":  # whose URLs contain the key, so that the fault can match it
        server.faults += [Fault(sending, "state.json", 1, "denied")]
        with pytest.raises(StoreError, match=rf"{remote.url}/ep0-ba5/state.json cannot be written: permission denied"):
            remote.send(folder / "ep0-ba5", "ep0-ba5", confirm=lambda: None)
    flip(folder / "ep0-ba6" / "state.json")
    with pytest.raises(CorruptCheckpointError, match=r"state.json does not match its hash"):
        remote.send(folder / "ep0-ba6", "ep0-ba6", confirm=lambda: None)

    def lost() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        remote.send(folder / "ep0-ba5", "ep0-ba5", confirm=lost)
    assert remote.look().committed == ()


@of_one_store
def test_retention_counts_checkpoints_in_the_store(remote: RemoteFolder, tmp_path: Path) -> None:
    send(remote, tmp_path / "run", 2, 4, 6, 8, 10)
    remote.store.send([(tmp_path / "run" / "config.yaml", f"ep0-ba2/{KEEP}")])
    assert remote.prune(Retention(newest=2), 8) == ["ep0-ba4"]
    # A later checkpoint is not deleted: the run has resumed from an earlier one.
    assert remote.look().committed == ("ep0-ba2", "ep0-ba6", "ep0-ba8", "ep0-ba10")


@of_one_store
def test_a_run_from_the_beginning_clears_the_folder(remote: RemoteFolder, server: Server, tmp_path: Path) -> None:
    send(remote, tmp_path / "run", 2)
    for name in (*LOGS, "incidents/ba1/batch.pt", "incidents.txt", "config.yaml"):
        remote.store.send([(tmp_path / "run" / "config.yaml", name)])
    remote.clear()
    assert sorted(server.content()) == ["run/config.yaml", "run/incidents.txt"]
