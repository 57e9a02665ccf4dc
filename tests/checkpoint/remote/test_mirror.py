"""Committed checkpoints are sent by a separate process, also when it fails."""

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from data.base.errors import DataError
from data.stores.store import open_store
from tests.helpers.saved_checkpoints import write_save_folder
from tests.helpers.store_faults import Fault
from tests.helpers.stores import Server, serve
from train.checkpoint.remote.folder import OWNER, RemoteFolder
from train.checkpoint.remote.lease import take
from train.checkpoint.remote.mirror import Mirror
from train.checkpoint.remote.sender import Sender
from train.checkpoint.retention import Retention
from train.checkpoint.save_folder import checkpoints

pytestmark = [pytest.mark.timeout(120), pytest.mark.subprocess]


@pytest.fixture(scope="module")
def server():
    with serve("s3") as served:
        yield served


@pytest.fixture
def remote(server: Server, request):
    yield RemoteFolder(open_store(f"{server.url}/{request.node.name}"))
    server.faults.clear()


def mirror_of(remote: RemoteFolder, local: Path, *, stop: bool = True) -> Mirror:
    sender = Sender(remote, local, take(remote, "mine"), Retention(newest=2))
    return Mirror(sender, url=remote.url, local=local, stop_on_error=stop)


def at(batch: int) -> Any:
    return SimpleNamespace(timestamp=SimpleNamespace(batch=SimpleNamespace(value=batch)))


def test_checkpoints_are_sent_and_pruned_even_if_they_are_deleted_meanwhile(remote: RemoteFolder, tmp_path) -> None:
    local = write_save_folder(tmp_path, 2)
    mirror = mirror_of(remote, local)
    mirror.begin(resuming=True)  # sends the checkpoint that an earlier run left unsent
    for batch in (4, 6):
        write_save_folder(local, batch)
        mirror.on_committed(local / f"ep0-ba{batch}")
        shutil.rmtree(local / f"ep0-ba{batch}")
    (local / "record.jsonl").write_text("{}\n")
    mirror.finish()
    contents = remote.look()
    assert contents.committed == ("ep0-ba4", "ep0-ba6")
    assert sorted(contents.beside) == ["config.yaml", "record.jsonl"]
    assert OWNER not in contents.sizes
    assert [path.name for path in local.iterdir() if path.name.startswith(".part")] == []


def test_the_third_unsent_checkpoint_waits(remote: RemoteFolder, server: Server, tmp_path: Path) -> None:
    local = write_save_folder(tmp_path)
    mirror = mirror_of(remote, local)
    mirror.begin(resuming=False)
    sender: Any = mirror._sender
    server.faults += [Fault("PUT", "ep0-ba1/__0_0", 1, "slow", 1.0)]
    unsent = []
    for batch in (1, 2, 3):
        write_save_folder(local, batch)
        mirror.on_committed(local / f"ep0-ba{batch}")
        unsent.append([order.name for order in sender.unsent])
    assert unsent[:2] == [["ep0-ba1"], ["ep0-ba1", "ep0-ba2"]]
    assert "ep0-ba1" not in unsent[2]
    mirror.finish()


def test_an_error_stops_the_run_before_the_next_step(remote: RemoteFolder, server: Server, tmp_path: Path) -> None:
    local = write_save_folder(tmp_path)
    mirror = mirror_of(remote, local)
    mirror.begin(resuming=False)
    server.faults += [Fault("PUT", "ep0-ba2/state.json", 100, "denied")]
    write_save_folder(local, 2)
    mirror.on_committed(local / "ep0-ba2")
    sender: Any = mirror._sender
    sender.wait(0)
    with pytest.raises(DataError, match=rf"ep0-ba2 was not sent: {remote.url}/ep0-ba2/state.json cannot be written: "):
        mirror.batch_start(at(2), None)  # pyright: ignore[reportArgumentType]: no logger is needed
    mirror.abandon()
    assert remote.look().committed == ()
    assert [path.name for path in checkpoints(local)] == ["ep0-ba2"]
    # The next start sends it.
    server.faults.clear()
    mirror = mirror_of(remote, local)
    mirror.begin(resuming=True)
    mirror.finish()
    assert remote.look().committed == ("ep0-ba2",)


def test_with_warn_a_failed_checkpoint_is_sent_with_the_next_one(
    remote: RemoteFolder, server: Server, tmp_path, monkeypatch
) -> None:
    local = write_save_folder(tmp_path)
    mirror = mirror_of(remote, local, stop=False)
    mirror.begin(resuming=False)
    sender: Any = mirror._sender
    server.faults += [Fault("PUT", "ep0-ba6/state.json", 100, "denied")]
    link = os.link

    def refuse_one(source: Path, place: Path) -> None:
        if place.name == "state.json":
            monkeypatch.undo()
            raise OSError(errno.ENOSPC, "No space left on device")
        link(source, place)

    monkeypatch.setattr("train.checkpoint.remote.sender.os.link", refuse_one)
    for batch in (2, 4):
        write_save_folder(local, batch)
        mirror.on_committed(local / f"ep0-ba{batch}")
        assert [reason for _, reason in sender.failed] == ["[Errno 28] No space left on device"][: batch == 2]
        sender.wait(0)
        mirror.batch_start(at(batch), None)  # pyright: ignore[reportArgumentType]
    assert remote.look().committed == ("ep0-ba2", "ep0-ba4")
    assert mirror.seconds_to_send() == sender.longest > 0
    write_save_folder(local, 6)
    mirror.on_committed(local / "ep0-ba6")
    with pytest.raises(DataError, match="ep0-ba6 was not sent"):  # the last checkpoint is required
        mirror.finish()


def test_other_ranks_stop_waiting_if_rank_0_fails(tmp_path: Path, monkeypatch) -> None:
    message = []
    monkeypatch.setattr("train.checkpoint.remote.mirror.from_first_rank", lambda key, value: message.append(key))
    mirror = Mirror(cast(Sender, object()), url="s3://bucket/run", local=tmp_path, stop_on_error=True)
    with pytest.raises(AttributeError):
        mirror.on_committed(tmp_path / "ep0-ba2")
    assert message == ["mirror/1"]


def test_a_sending_process_that_is_killed_is_an_error(remote: RemoteFolder, server: Server, tmp_path: Path) -> None:
    local = write_save_folder(tmp_path)
    mirror = mirror_of(remote, local)
    mirror.begin(resuming=False)
    server.faults += [Fault("PUT", "ep0-ba2/__0_0", 1, "slow", 30.0)]
    write_save_folder(local, 2)
    mirror.on_committed(local / "ep0-ba2")
    sender: Any = mirror._sender
    sender._process.kill()
    sender.wait(0)
    with pytest.raises(DataError, match=r"the process that sends checkpoints to .* exited unexpectedly"):
        mirror.batch_start(at(2), None)  # pyright: ignore[reportArgumentType]
    mirror.abandon()


def test_an_idle_sending_process_that_is_killed_is_restarted(remote: RemoteFolder, tmp_path: Path) -> None:
    local = write_save_folder(tmp_path)
    mirror = mirror_of(remote, local)
    mirror.begin(resuming=False)
    sender: Any = mirror._sender
    killed = sender._process
    killed.kill()
    killed.stdout.peek(1)  # wait until it has ended
    mirror.batch_start(at(2), None)  # pyright: ignore[reportArgumentType]
    assert sender._process is not killed
    (local / "record.jsonl").write_text("{}\n")
    sender._process.kill()
    mirror.finish()
    assert "record.jsonl" in remote.look().sizes


def test_a_run_that_has_lost_its_folder_stops(remote: RemoteFolder, tmp_path: Path, monkeypatch) -> None:
    local = write_save_folder(tmp_path)
    mirror = mirror_of(remote, local, stop=False)
    mirror.begin(resuming=False)
    remote.store.delete([OWNER])
    other = take(remote, "other")
    write_save_folder(local, 2)
    mirror.on_committed(local / "ep0-ba2")
    sender: Any = mirror._sender
    sender.wait(0)
    with pytest.raises(DataError, match="no longer belongs to this run: taken over by run 'other'"):
        mirror.batch_start(at(2), None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match="taken over by run 'other'"):
        mirror.finish()
    assert remote.look().committed == ()
    other.renew()
