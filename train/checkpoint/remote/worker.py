"""The process that sends checkpoints to an object store while its parent, rank 0, trains. Imports no torch.

A separate process is used because a thread would hold the GIL that the training loop needs, and because forked data
loader workers could hang if their parent had threads of a store's library.

Orders are lines of JSON on standard input, and reports are written to standard output. If the input is closed without
an order to end, the parent has been killed, and nothing more is committed.
"""

import json
import os
import queue
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from data.stores.store import StoreError, open_store
from train.checkpoint.remote.folder import RemoteFolder, files_beside
from train.checkpoint.remote.lease import BEAT, Lease, TakenOverError
from train.checkpoint.retention import Retention
from train.checkpoint.save_folder import LOGS, PART
from train.checkpoint.storage.manifest import CorruptCheckpointError

SCAN = 15.0
"""Seconds between two checks for changed files next to the checkpoints, such as record.jsonl."""
_SENT_OFTEN = 8 * 2**20
"""Size in bytes above which a file next to the checkpoints, such as a long metrics.jsonl, is sent only after a
checkpoint and at the end of the run."""
_LOOK = 0.5
"""Seconds between two checks of whether the parent is alive."""


@dataclass
class Worker:
    """Executes orders one after the other. Once another run owns the folder, this worker no longer changes the
    store."""

    folder: RemoteFolder
    local: Path
    """The staging folder."""
    lease: Lease
    retention: Retention
    reports: TextIO
    orders: queue.Queue[dict[str, Any] | None] = field(default_factory=queue.Queue)
    """The orders to execute. None ends the process."""
    stopped: threading.Event = field(default_factory=threading.Event)
    """Set when this worker must not commit any more checkpoints."""
    scanning: threading.Event = field(default_factory=threading.Event)
    """Set once the files next to the checkpoints belong to this run. From then on, these files are also sent."""
    _sent: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Size and modification time of each file next to the checkpoints when it was last sent."""
    _reporting: threading.Lock = field(default_factory=threading.Lock)

    def work(self) -> None:
        while True:
            try:
                order = self.orders.get(timeout=SCAN)
            except queue.Empty:
                if self.scanning.is_set():
                    self._send_beside(most=_SENT_OFTEN)
                continue
            if order is None:
                break
            if not self.stopped.is_set():
                self._checkpoint(Path(order["path"]), order["name"], order["batch"])
        self._report(ended=True, error=self._send_beside())

    def beat(self) -> None:
        while not self.stopped.wait(BEAT):
            try:
                self.lease.renew()
            except TakenOverError as error:
                self._stop(error)
            except StoreError:
                pass  # the next renewal may succeed; without a successful renewal, nothing is committed

    def _checkpoint(self, path: Path, name: str, batch: int) -> None:
        started, error = time.monotonic(), None
        try:
            n_bytes = self.folder.send(path, name, confirm=self._confirm)
            self._report(done=name, bytes=n_bytes, seconds=time.monotonic() - started)
        except TakenOverError as taken:
            self._stop(taken)
            return
        except CorruptCheckpointError as corrupt:
            error = f"{name} was not sent, because it is corrupt: {corrupt.name} {corrupt.defect}"
        except (StoreError, OSError, ValueError) as failed:
            error = str(failed)
        if error is not None:
            self._report(failed=name, error=error)
            return
        shutil.rmtree(path, ignore_errors=True)
        self._send_beside()
        try:
            self._confirm()
            for removed in self.folder.prune(self.retention, batch):
                self._report(removed=removed)
        except TakenOverError as taken:
            self._stop(taken)
        except StoreError as failed:
            self._report(warning=f"superseded checkpoints were not deleted: {failed}")

    def _stop(self, error: TakenOverError) -> None:
        self.stopped.set()
        self._report(lost=str(error))

    def _confirm(self) -> None:
        if self.stopped.is_set():
            raise TakenOverError(f"{self.folder.url}: the run has ended")
        self.lease.renew()

    def _send_beside(self, *, most: int | None = None) -> str | None:
        """Send changed files next to the checkpoints, up to `most` bytes each. Return the error, if any. Files that
        could not be sent are sent by the next call."""
        if self.stopped.is_set():
            return None
        confirmed = False
        for path, name in files_beside(self.local):
            try:
                state = path.stat()
                version = state.st_size, state.st_mtime_ns
                if self._sent.get(name) != version and (most is None or state.st_size <= most):
                    if not confirmed:
                        self._confirm()
                        confirmed = True
                    with _at_rest(path) as source:
                        self.folder.store.send([(source, name)])
                    self._sent[name] = version
            except FileNotFoundError:
                continue
            except TakenOverError as taken:
                self._stop(taken)
                return str(taken)
            except (StoreError, OSError) as error:
                return str(error)
        return None

    def _report(self, **values: Any) -> None:
        with self._reporting:
            self.reports.write(json.dumps(values) + "\n")
            self.reports.flush()


@contextmanager
def _at_rest(path: Path) -> Iterator[Path]:
    """Yield the path of the file. For a log, yield the path of a copy, because the run appends to logs while they are
    sent."""
    if path.name not in LOGS:
        yield path
        return
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{PART}sent-") as copy:
        shutil.copyfile(path, copy.name)
        yield Path(copy.name)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # the parent decides when this process ends
    reports, sys.stdout = sys.stdout, sys.stderr  # so that the output of libraries is not mixed with the reports
    begin = json.loads(sys.stdin.readline())
    folder = RemoteFolder(open_store(begin["url"]))
    lease = Lease(folder, begin["owner"])
    worker = Worker(folder, Path(begin["folder"]), lease, Retention(**begin["retention"]), reports)
    threading.Thread(target=worker.beat, daemon=True).start()
    threading.Thread(target=_watch_parent, args=(worker, begin["parent"]), daemon=True).start()
    work = threading.Thread(target=_work, args=(worker,), daemon=True)
    work.start()
    ended = False
    for line in sys.stdin:
        order = json.loads(line)
        ended = "end" in order
        if "begin" in order:
            worker.scanning.set()
        else:
            worker.orders.put(None if ended else order)
        if ended:
            work.join()
            break
    _leave(worker, 0 if ended else 1)


def _work(worker: Worker) -> None:
    """Run the worker. If it raises an error, end the process, so that the parent notices the failure and does not wait
    forever."""
    try:
        worker.work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _watch_parent(worker: Worker, parent: int) -> None:
    """Exit if the parent has ended. The check is necessary because processes forked from the parent may keep the
    standard input open for a while."""
    while os.getppid() == parent:
        time.sleep(_LOOK)
    _leave(worker, 1)


def _leave(worker: Worker, code: int) -> None:
    """Exit without waiting for work in progress."""
    worker.stopped.set()
    with suppress(StoreError):
        worker.lease.release()
    os._exit(code)


if __name__ == "__main__":
    main()
