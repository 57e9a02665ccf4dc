"""Start the process that sends checkpoints (worker.py), write orders to it and read its reports. Used only on rank
0."""

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
"""Maximum time in seconds for the process to release the folder when the run fails."""
_RESTARTS = 3
"""Maximum number of restarts of the process between two commits."""


@dataclass(frozen=True, kw_only=True)
class _Order:
    """A checkpoint to be sent. Hard links to its files are sent, so the checkpoint may be deleted before it is sent."""

    checkpoint: Path
    path: Path
    """The folder that contains the hard links."""

    @property
    def name(self) -> str:
        return self.checkpoint.name

    @property
    def batch(self) -> int:
        return batch_of(self.checkpoint)


class Sender:
    """Sends checkpoints in the order in which they are added. Several threads may call its methods."""

    def __init__(self, folder: RemoteFolder, local: Path, lease: Lease, retention: Retention) -> None:
        self.folder, self.retention, self._local, self._lease = folder, retention, local, lease
        self.unsent: list[_Order] = []
        """Checkpoints that are being sent or are waiting to be sent, oldest first."""
        self.failed: list[tuple[_Order, str]] = []
        """Checkpoints that could not be sent, each with the reason."""
        self.lost: str | None = None
        """The reason why the folder no longer belongs to this run; None while the folder belongs to this run."""
        self.ended = False
        self.end_error: str | None = None
        self.longest = 0.0
        """Longest time in seconds that sending a checkpoint has taken in this process."""
        self._numbers, self._lock, self._buffer, self._began = itertools.count(), threading.RLock(), b"", False
        self._restarts = 0
        self._process = self._start()

    def begin(self) -> None:
        """Make the process also send the files next to the checkpoints from now on."""
        self._began = True
        self._order({"begin": True})

    def add(self, checkpoint: Path) -> None:
        """Send a checkpoint. Errors of the staging folder or of this machine are added to `failed`."""
        if self.lost is not None:
            return
        part = checkpoint.with_name(f"{PART}sending-{next(self._numbers)}-{checkpoint.name}")
        shutil.rmtree(part, ignore_errors=True)
        self._restarts = 0
        self._send(_Order(checkpoint=checkpoint, path=part))

    def retry(self) -> None:
        """Send the newest checkpoint in `failed` again. Older failed checkpoints are not sent."""
        with self._lock:
            failed, self.failed = [order for order, _ in self.failed], []
            for order in failed[:-1]:
                shutil.rmtree(order.path, ignore_errors=True)
            if failed:
                self._send(failed[-1])

    def poll(self, seconds: float = 0.0) -> None:
        """Read the reports of the process, and wait at most `seconds` for a report. With seconds=0, return immediately
        if another thread is reading."""
        if not self._lock.acquire(blocking=seconds > 0):
            return
        try:
            self._read(seconds)
        finally:
            self._lock.release()

    def wait(self, most: int) -> None:
        """Wait until no more than `most` checkpoints are unsent."""
        while len(self.unsent) > most and self.lost is None:
            self.poll(0.2)

    def end(self) -> None:
        """Wait until everything is sent, then release the folder."""
        self._restarts, notified = 0, None
        while not self.ended and self.lost is None and self._process.returncode is None:
            if notified is not self._process:  # a restarted process must receive this order as well
                notified = self._process
                self._order({"end": True})
            self.poll(0.2)
        if self.ended:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_CLOSE_SECONDS)
        self.close()

    def close(self) -> None:
        """Release the folder without waiting for unsent checkpoints."""
        if self._process.returncode is None:
            with suppress(OSError):
                self._process.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]
            try:
                self._process.wait(_CLOSE_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._close_pipes()

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _start(self) -> "subprocess.Popen[bytes]":
        """Start the process. Raises OSError."""
        paths = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        process = subprocess.Popen(
            [sys.executable, "-m", "train.checkpoint.remote.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"},
            # The process must not receive signals that a launcher sends to the ranks.
            start_new_session=True,
        )
        self._process, self._buffer = process, b""
        self._order(
            {
                "url": self.folder.url,
                "folder": str(self._local.absolute()),
                "owner": self._lease.owner,
                "retention": asdict(self.retention),
                "parent": os.getpid(),
            }
        )
        if self._began:
            self.begin()
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
            try:
                if not order.path.exists():
                    _link(order)
                if self._process.returncode is not None:
                    self._start()
            except OSError as error:
                self.failed.append((order, str(error)))
                return
            self.unsent.append(order)
            self._order({"path": str(order.path.absolute()), "name": order.name, "batch": order.batch})

    def _order(self, values: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(OSError, ValueError):  # `poll` handles the case that the process has ended
            self._process.stdin.write(json.dumps(values).encode() + b"\n")
            self._process.stdin.flush()

    def _take(self, report: Mapping[str, Any]) -> None:
        match report:
            case {"done": name, "bytes": n_bytes, "seconds": seconds}:
                batch, self.longest = self.unsent.pop(0).batch, max(self.longest, seconds)
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
                logger.info(f"{self.folder.url}/{name}: deleted, because it is superseded")
            case {"warning": text}:
                logger.warning(text)
            case {"ended": _, "error": error}:
                self.ended, self.end_error = True, error

    def _gone(self) -> None:
        """Handle the unexpected end of the process: restart it, so that it keeps ownership of the folder and sends the
        files next to the checkpoints."""
        code = self._process.wait()
        if self.ended:
            return
        reason = f"the process that sends checkpoints to {self.folder.url} exited unexpectedly (exit code {code})"
        self.failed += [(order, reason) for order in self.unsent]
        self.unsent = []
        self.end_error = reason
        if self.lost is not None or self._restarts == _RESTARTS:
            return
        self._restarts += 1
        self._close_pipes()
        logger.warning(f"{reason}: restarting it")
        with suppress(OSError):  # if the process cannot be started, this is retried at the next checkpoint
            self._start()
            self.end_error = None


def _link(order: _Order) -> None:
    """Create hard links to the checkpoint's files. If this fails, removes the links and raises OSError."""
    try:
        order.path.mkdir()
        for file in order.checkpoint.iterdir():
            os.link(file, order.path / file.name)
    except OSError:
        shutil.rmtree(order.path, ignore_errors=True)
        raise
