"""The worker processes of a loader: which worker must deliver the next batch, and the state of its process."""

import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from data.base.errors import DataError
from data.loading import processes

_ENDED = re.compile(r"DataLoader worker \(pid(?:\(s\))? (\d+)[^)]*\)\s*(.*)")
"""Matches torch's message about a worker that has ended. torch raises this error in the main thread, at any point of
the program."""

_CHECK_SECONDS = 0.5
"""Seconds between two checks for late workers."""
_REPORT_SECONDS = 1.0
"""After a worker's connection breaks: seconds to wait for the operating system to report that the worker has ended."""
_HINT = "set num_workers: 0 to read the data in the training process, so that a traceback shows where the error occurs"


class Workers:
    """The worker processes of one rank's loader during one iteration. Batch n comes from worker n % len(pids).

    torch's own timeout has no effect if a worker is stopped after it has put a batch into the result queue: torch then
    fetches the batch's tensors from the worker without a time limit. Therefore, a worker that is late is killed, which
    makes torch raise an error in the main thread.
    """

    def __init__(self, name: str, pids: Sequence[int]) -> None:
        """name: the name of the loader, such as `rank 1's train_loader`."""
        self._name, self._pids = name, list(pids)
        self._wait: _Wait | None = None
        self._late: DataError | None = None
        self._closed = threading.Event()

    def __bool__(self) -> bool:
        return bool(self._pids)

    def watch(self) -> None:
        """Check for late workers in a thread, until `close` is called."""
        self._closed = threading.Event()
        threading.Thread(target=self._watch, args=[self._closed], name="loader-workers", daemon=True).start()

    def close(self) -> None:
        self._closed.set()

    @contextmanager
    def waited_for(self, given: int | None, due: int, seconds_left: Callable[[], float]) -> Iterator[None]:
        """given: number of batches that this iteration has returned; None if the iteration has not begun. due: number
        of the batch that is returned next."""
        self._wait = _Wait(given=given, due=due, seconds_left=seconds_left, since=time.monotonic())
        yield
        self._wait = None

    def named(self, error: BaseException, given: int, due: int) -> DataError | None:
        """A DataError that replaces torch's error about a worker that has ended. None for other errors, and for workers
        of other loaders."""
        raised = self._error_of_an_end(error)
        if self._late is not None:
            return self._late
        found = _ENDED.search(str(raised))
        if found is None or int(found[1]) not in self._pids:
            return None
        number = self._pids.index(int(found[1]))
        batch = due + (number - given) % len(self._pids)
        how = found[2].partition(". Details")[0].strip(" .") or "has ended"
        return DataError(
            f"{self._named(number)} {how} before it delivered batch {batch}: check the system log for out-of-memory "
            f"messages; {_HINT}"
        )

    def _error_of_an_end(self, error: BaseException) -> BaseException:
        """Return torch's error about a worker that has ended, or `error` if torch raises no such error. When a worker
        ends, its connections break first, so `error` may be a connection error. Because torch raises its own error only
        once, this method waits for that error."""
        if not isinstance(error, (OSError, EOFError)):
            return error
        deadline = time.monotonic() + _REPORT_SECONDS
        try:
            while not any(processes.has_ended(pid) for pid in self._pids) and time.monotonic() < deadline:
                time.sleep(_REPORT_SECONDS / 100)
            time.sleep(_REPORT_SECONDS / 100)
        except RuntimeError as raised:
            return raised
        return error

    def _watch(self, closed: threading.Event) -> None:
        while not closed.wait(_CHECK_SECONDS):
            wait = self._wait
            if wait is not None and wait.seconds_left() <= 0:
                stopped = [number for number, pid in enumerate(self._pids) if processes.is_stopped(pid)]
                late = wait.given % len(self._pids) if wait.given is not None else (stopped or [0])[0]
                self._late = self._lateness(late, wait)
                for number in stopped:
                    # A worker that SIGSTOP has stopped only ends if it is continued or killed.
                    processes.kill(self._pids[number], signal.SIGCONT if number != late else signal.SIGKILL)
                processes.kill(self._pids[late])
                return

    def _lateness(self, number: int, wait: "_Wait") -> DataError:
        pid, seconds = self._pids[number], time.monotonic() - wait.since
        if processes.is_stopped(pid):
            hint = "find out which process sends SIGSTOP to processes on this machine"
        else:
            hint = f"check whether a file system hangs, or increase deadlines.data; {_HINT}"
        return DataError(
            f"{self._named(number)} {processes.state(pid)} and has not delivered batch {wait.due} within "
            f"{seconds:.3g} s (deadlines.data): {hint}"
        )

    def _named(self, number: int) -> str:
        return f"worker {number} of {len(self._pids)} (pid {self._pids[number]}) of {self._name}"


@dataclass(frozen=True, kw_only=True)
class _Wait:
    given: int | None
    due: int
    seconds_left: Callable[[], float]
    since: float
