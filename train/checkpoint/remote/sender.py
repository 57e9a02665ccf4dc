"""Rank 0's side of the process that sends checkpoints: starts it, hands it checkpoints, and reads its reports."""

import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.base.console import logger
from data.base.sizes import format_bytes
from train.checkpoint.remote.folder import RemoteFolder
from train.checkpoint.remote.lease import Lease
from train.checkpoint.retention import Retention
from train.checkpoint.save_folder import PART, batch_of

_ROOT = Path(__file__).resolve().parents[3]
_CLOSE_SECONDS = 15.0
"""That the process is given to give the folder up when the run fails."""


@dataclass(frozen=True, kw_only=True)
class _Order:
    """A checkpoint to be sent: its files are links, so that it may be deleted meanwhile."""

    path: Path
    name: str
    batch: int


class Sender:
    """Sends checkpoints in the order in which they are added. Several threads may call it."""

    def __init__(self, folder: RemoteFolder, local: Path, lease: Lease, retention: Retention) -> None:
        self.folder, self.retention, self._local, self._lease = folder, retention, local, lease
        self.unsent: list[_Order] = []
        """Under way or waiting, oldest first."""
        self.failed: list[tuple[_Order, str]] = []
        """With the reason."""
        self.lost: str | None = None
        """Why the folder is not this run's any more."""
        self.ended = False
        self.end_error: str | None = None
        self._numbers, self._lock, self._buffer, self._began = itertools.count(), threading.RLock(), b"", False
        self._process = self._start()

    def begin(self) -> None:
        """From now on the files beside the checkpoints are sent too."""
        self._began = True
        self._order({"begin": True})

    def add(self, checkpoint: Path) -> None:
        """Raises OSError where the staging folder's file system has no hard links."""
        part = checkpoint.with_name(f"{PART}sending-{next(self._numbers)}-{checkpoint.name}")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for file in checkpoint.iterdir():
            os.link(file, part / file.name)
        self._send(_Order(path=part, name=checkpoint.name, batch=batch_of(checkpoint)))

    def retry(self) -> None:
        """Sends the newest checkpoint that failed once more; older ones are given up."""
        with self._lock:
            failed, self.failed = [order for order, _ in self.failed], []
            for order in failed[:-1]:
                shutil.rmtree(order.path, ignore_errors=True)
            if failed:
                self._send(failed[-1])

    def poll(self, seconds: float = 0.0) -> None:
        """Reads what the process has reported; waits for a report at most that long. Without waiting it reads nothing
        while another thread does."""
        if not self._lock.acquire(blocking=seconds > 0):
            return
        try:
            self._read(seconds)
        finally:
            self._lock.release()

    def wait(self, most: int) -> None:
        """Until at most that many checkpoints are unsent."""
        while len(self.unsent) > most and self.lost is None:
            self.poll(0.2)

    def end(self) -> None:
        """Waits until all is sent. Then the folder belongs to nobody."""
        self._order({"end": True})
        while not self.ended and self._process.returncode is None:
            self.poll(0.2)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_SECONDS)
        self.close()

    def close(self) -> None:
        """Gives the folder up without waiting for what is unsent."""
        if self._process.returncode is None:
            with suppress(OSError):
                self._process.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]
            try:
                self._process.wait(_CLOSE_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _start(self) -> "subprocess.Popen[bytes]":
        paths = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        process = subprocess.Popen(
            [sys.executable, "-m", "train.checkpoint.remote.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"},
            # A launcher's signals are for the ranks.
            start_new_session=True,
        )
        self._process = process
        self._order(
            {
                "url": self.folder.url,
                "folder": str(self._local.absolute()),
                "owner": self._lease.owner,
                "retention": asdict(self.retention),
                "parent": os.getpid(),
            }
        )
        return process

    def _read(self, seconds: float) -> None:
        assert self._process.stdout is not None
        handle = self._process.stdout.fileno()
        while self._process.returncode is None and select.select([handle], [], [], seconds)[0]:
            data = os.read(handle, 1 << 16)
            if not data:
                self._gone()
                return
            *lines, self._buffer = (self._buffer + data).split(b"\n")
            for line in lines:
                self._take(json.loads(line))
            seconds = 0.0

    def _send(self, order: _Order) -> None:
        with self._lock:
            if self._process.returncode is not None:
                self._process = self._start()
                if self._began:
                    self.begin()
            self.unsent.append(order)
            self._order({"path": str(order.path.absolute()), "name": order.name, "batch": order.batch})

    def _order(self, values: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # a process that has ended is seen by poll
            self._process.stdin.write(json.dumps(values).encode() + b"\n")
            self._process.stdin.flush()

    def _take(self, report: Mapping[str, Any]) -> None:
        match report:
            case {"done": name, "bytes": n_bytes, "seconds": seconds}:
                batch = self.unsent.pop(0).batch
                for order in [order for order, _ in self.failed if order.batch <= batch]:
                    shutil.rmtree(order.path, ignore_errors=True)
                self.failed = [each for each in self.failed if each[0].batch > batch]
                speed = f"{format_bytes(n_bytes)} in {seconds:.1f} s"
                logger.info(f"{self.folder.url}/{name}: sent and committed, {speed}")
            case {"failed": _, "error": error}:
                self.failed.append((self.unsent.pop(0), error))
            case {"lost": reason}:
                self.lost = reason
            case {"removed": name}:
                logger.info(f"{self.folder.url}/{name}: deleted, it is superseded")
            case {"warning": text}:
                logger.warning(text)
            case {"ended": _, "error": error}:
                self.ended, self.end_error = True, error

    def _gone(self) -> None:
        code = self._process.wait()
        if not self.ended:
            reason = f"the process that sends checkpoints to {self.folder.url} ended by itself (exit code {code})"
            self.failed += [(order, reason) for order in self.unsent]
            self.unsent = []
            self.end_error = reason
