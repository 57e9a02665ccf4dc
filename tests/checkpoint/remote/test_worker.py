"""The sending process of a run that has lost its folder changes no files of the new owner."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from data.stores.store import open_store
from tests.helpers.saved_checkpoints import write_save_folder
from tests.helpers.stores import Server, serve, shorten_waits
from train.checkpoint.remote.folder import OWNER, RemoteFolder
from train.checkpoint.remote.lease import Lease, take
from train.checkpoint.remote.worker import Worker
from train.checkpoint.retention import Retention

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    shorten_waits(monkeypatch)
    with serve("s3") as served:
        yield served


def worker_of(remote: RemoteFolder, local: Path, lease: Lease) -> Worker:
    worker = Worker(remote, local, lease, Retention(newest=1), io.StringIO())
    worker.scanning.set()
    return worker


def carry_out(worker: Worker, *checkpoints: Path) -> list[dict[str, Any]]:
    """Return the reports of the process."""
    for batch, path in enumerate(checkpoints, 2):
        worker.orders.put({"path": str(path), "name": f"ep0-ba{batch}", "batch": batch})
    worker.orders.put(None)
    worker.work()
    assert isinstance(worker.reports, io.StringIO)
    return [json.loads(line) for line in worker.reports.getvalue().splitlines()]


def test_files_of_a_new_owner_are_not_changed(server: Server, tmp_path: Path) -> None:
    remote = RemoteFolder(open_store(f"{server.url}/run"))
    mine = write_save_folder(tmp_path / "mine", 2, 3)
    (mine / "record.jsonl").write_text("mine\n")
    first = worker_of(remote, mine, take(remote, "mine"))
    remote.store.delete([OWNER])  # another run deletes it if it sees no renewal
    theirs = write_save_folder(tmp_path / "theirs", 2)
    (theirs / "record.jsonl").write_text("theirs\n")
    (theirs / "ep0-ba2" / "keep").touch()
    second = worker_of(remote, theirs, take(remote, "theirs"))
    assert [*carry_out(second, theirs / "ep0-ba2")[0]] == ["done", "bytes", "seconds"]
    second.lease.renew()
    before = server.content()

    lost, ended = carry_out(first, mine / "ep0-ba2", mine / "ep0-ba3")
    assert "no longer belongs to this run: taken over by run 'theirs'" in lost["lost"]
    assert ended == {"ended": True, "error": None}
    assert server.content() == before


def test_a_long_log_is_only_sent_with_checkpoints(server: Server, tmp_path: Path) -> None:
    remote = RemoteFolder(open_store(f"{server.url}/run"))
    folder = write_save_folder(tmp_path / "mine", 2)
    worker = worker_of(remote, folder, take(remote, "mine"))
    (folder / "metrics.jsonl").write_text("{}\n")
    assert worker._send_beside(most=3) is None
    assert server.content()["run/metrics.jsonl"] == b"{}\n"
    (folder / "metrics.jsonl").write_text("{}\n{}\n")
    assert worker._send_beside(most=3) is None
    assert server.content()["run/metrics.jsonl"] == b"{}\n"
    carry_out(worker, folder / "ep0-ba2")
    assert server.content()["run/metrics.jsonl"] == b"{}\n{}\n"


def test_files_beside_the_checkpoints_are_not_sent_either(server: Server, tmp_path: Path) -> None:
    remote = RemoteFolder(open_store(f"{server.url}/run"))
    lease = take(remote, "mine")
    remote.store.delete([OWNER])
    lost, ended = carry_out(worker_of(remote, write_save_folder(tmp_path), lease))
    assert lost["lost"] == ended["error"]
    assert server.content() == {}
