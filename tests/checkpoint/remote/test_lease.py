"""One run owns a save folder in an object store."""

import os
import threading
from pathlib import Path

import pytest

from data.base.errors import ConfigError
from data.stores.store import open_store
from tests.helpers.stores import serve, shorten_waits
from train.checkpoint.owner import this_owner
from train.checkpoint.remote import lease
from train.checkpoint.remote.folder import OWNER, RemoteFolder
from train.checkpoint.remote.lease import TakenOverError, take

pytestmark = pytest.mark.timeout(60)
of_one_store = pytest.mark.parametrize("remote", ["s3"], indirect=True)
"""For tests of code that does not depend on the store."""


@pytest.fixture(scope="module", params=["s3", "gs"])
def remote(request):
    with serve(request.param) as server, pytest.MonkeyPatch.context() as patch:
        shorten_waits(patch)
        yield RemoteFolder(open_store(f"{server.url}/run"))


@pytest.fixture(autouse=True)
def unowned(remote: RemoteFolder, monkeypatch):
    monkeypatch.setattr(lease, "POLL", 0.02)
    yield
    remote.store.delete([OWNER])


def owner_elsewhere(monkeypatch) -> str:
    with monkeypatch.context() as patch:
        patch.setattr("train.checkpoint.owner.machine", lambda: ("far", "", ""))
        return this_owner("theirs").decode()


def leave(remote: RemoteFolder, owner: str, beats: int = 0) -> None:
    remote.store.write(OWNER, lease._content(owner, beats))


def test_a_second_run_is_refused_until_the_first_has_ended(remote: RemoteFolder) -> None:
    held = take(remote, "mine")
    for _ in range(2):
        held.renew()
        with pytest.raises(ConfigError, match=rf"save_folder is {remote.url}, which belongs to run 'mine' \(host"):
            take(remote, "other")
    held.release()
    take(remote, "other").release()
    assert remote.store.read(OWNER) is None


@of_one_store
def test_the_lease_of_a_killed_run_on_this_machine_is_taken_over_immediately(
    remote: RemoteFolder, tmp_path: Path
) -> None:
    if (child := os.fork()) == 0:
        (tmp_path / "owner").write_bytes(this_owner("killed"))
        os._exit(0)
    os.waitpid(child, 0)
    leave(remote, (tmp_path / "owner").read_text())
    take(remote, "mine").renew()


@of_one_store
def test_the_lease_of_a_remote_run_without_renewals_is_taken_over(remote: RemoteFolder, monkeypatch) -> None:
    monkeypatch.setattr(lease, "STALE", 0.1)
    leave(remote, owner_elsewhere(monkeypatch))
    take(remote, "mine").renew()


@of_one_store
def test_the_lease_of_a_remote_run_with_renewals_is_not_taken_over(remote: RemoteFolder, monkeypatch) -> None:
    owner = owner_elsewhere(monkeypatch)
    leave(remote, owner)
    timer = threading.Timer(0.2, leave, (remote, owner, 1))
    timer.start()
    with pytest.raises(ConfigError, match=r"belongs to run 'theirs' \(host 'far'"):
        take(remote, "mine")
    timer.join()


def test_a_run_that_has_lost_the_folder_notices_and_changes_nothing(remote: RemoteFolder, monkeypatch) -> None:
    held = take(remote, "mine")
    leave(remote, owner_elsewhere(monkeypatch))
    with pytest.raises(TakenOverError, match=r"no longer belongs to this run: taken over by run 'theirs'"):
        held.renew()
    held.release()
    assert remote.store.read(OWNER) is not None
    remote.store.delete([OWNER])
    with pytest.raises(TakenOverError, match="its lease was deleted"):
        held.renew()


@of_one_store
def test_a_lost_response_does_not_refuse_the_owner(remote: RemoteFolder, monkeypatch) -> None:
    write = remote.store.write

    def write_unanswered(name: str, data: bytes, *, replaces: str | None = None) -> str | None:
        write(name, data, replaces=replaces)
        monkeypatch.undo()
        return None  # the next attempt finds the object that this one has written

    monkeypatch.setattr(remote.store, "write", write_unanswered)
    take(remote, "mine").renew()
