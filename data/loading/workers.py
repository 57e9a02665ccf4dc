"""The worker processes of a loader, by name: which one owes a batch, and what the system says about it."""

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
"""torch's words. It raises them in the main thread, wherever that is."""

_LOOK = 0.5
"""Seconds between two looks whether a worker is late."""
_TOLD = 1.0
"""Seconds within which the system tells of the end of a process whose connections are broken."""
_HINT = "num_workers: 0 reads in the training process, and shows where"


class Workers:
    """Of one rank's loader, during one of its iterations: batch n of it is worker n % len(pids)'s.

    torch's own timeout does not cover a worker that is stopped after it has announced a batch: its tensors are fetched
    from the worker. A worker that is late is killed, which makes torch raise in the main thread.
    """

    def __init__(self, name: str, pids: Sequence[int]) -> None:
        """name: whose they are, such as `rank 1's train_loader`."""
        self._name, self._pids = name, list(pids)
        self._wait: _Wait | None = None
        self._late: DataError | None = None
        self._closed = threading.Event()

    def __bool__(self) -> bool:
        return bool(self._pids)

    def watch(self) -> None:
        """From now on to `close`, in a thread."""
        self._closed = threading.Event()
        threading.Thread(target=self._watch, args=[self._closed], name="loader-workers", daemon=True).start()

    def close(self) -> None:
        self._closed.set()

    @contextmanager
    def waited_for(self, given: int | None, due: int, seconds_left: Callable[[], float]) -> Iterator[None]:
        """given: batches of this iteration so far, None before it has begun. due: the number of the next one."""
        self._wait = _Wait(given=given, due=due, seconds_left=seconds_left, since=time.monotonic())
        yield
        self._wait = None

    def named(self, error: BaseException, given: int, due: int) -> DataError | None:
        """For torch's error about a worker that has ended; None when it is about anything else, or another loader's."""
        told = self._told_of_an_end(error)
        if self._late is not None:
            return self._late
        found = _ENDED.search(str(told))
        if found is None or int(found[1]) not in self._pids:
            return None
        number = self._pids.index(int(found[1]))
        batch = due + (number - given) % len(self._pids)
        how = found[2].partition(". Details")[0].strip(" .") or "has ended"
        return DataError(
            f"{self._named(number)} {how} before it gave batch {batch}: look for the system's out-of-memory messages; "
            f"{_HINT}"
        )

    def _told_of_an_end(self, error: BaseException) -> BaseException:
        """What torch raises, once, when a worker has ended. The worker's connections break a moment before: an error
        of them is known first, and torch would raise while that one is handled."""
        if not isinstance(error, (OSError, EOFError)):
            return error
        deadline = time.monotonic() + _TOLD
        try:
            while not any(processes.has_ended(pid) for pid in self._pids) and time.monotonic() < deadline:
                time.sleep(_TOLD / 100)
            time.sleep(_TOLD / 100)
        except RuntimeError as told:
            return told
        return error

    def _watch(self, closed: threading.Event) -> None:
        while not closed.wait(_LOOK):
            wait = self._wait
            if wait is not None and wait.seconds_left() <= 0:
                stopped = [number for number, pid in enumerate(self._pids) if processes.is_stopped(pid)]
                late = wait.given % len(self._pids) if wait.given is not None else (stopped or [0])[0]
                self._late = self._lateness(late, wait)
                for number in stopped:
                    # It could not be ended otherwise.
                    processes.kill(self._pids[number], signal.SIGCONT if number != late else signal.SIGKILL)
                processes.kill(self._pids[late])
                return

    def _lateness(self, number: int, wait: "_Wait") -> DataError:
        pid, seconds = self._pids[number], time.monotonic() - wait.since
        if processes.is_stopped(pid):
            hint = "see who sends SIGSTOP to processes of this machine"
        else:
            hint = f"look for a file system that hangs, or raise deadlines.data; {_HINT}"
        return DataError(
            f"{self._named(number)} {processes.state(pid)} and has not given batch {wait.due}, which was waited for "
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
