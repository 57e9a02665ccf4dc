"""The worker processes of a loader, by name: which one owes a batch, and what the system says about it."""

import re
import signal
from collections.abc import Sequence

from data.base import processes
from data.base.errors import DataError

_ENDED = re.compile(r"DataLoader worker \(pid(?:\(s\))? (\d+)[^)]*\)\s*(.*)")
"""torch's words. It raises them in the main thread, wherever that is."""

HINT = "num_workers: 0 reads in the training process, and shows where"


class Workers:
    """Of one rank's loader. Batch n of an iteration is worker n % len(pids)'s."""

    def __init__(self, name: str, pids: Sequence[int]) -> None:
        """name: whose they are, such as `rank 1's train_loader`."""
        self._name, self._pids = name, list(pids)

    def ended(self, error: BaseException, given: int, due: int) -> DataError | None:
        """For torch's error about a worker that has ended; None when it is about anything else, or another loader's.

        given: batches of this iteration so far, due: the number of the next one.
        """
        found = _ENDED.search(str(error))
        if found is None or int(found[1]) not in self._pids:
            return None
        number = self._pids.index(int(found[1]))
        batch = due + (number - given) % len(self._pids)
        how = found[2].partition(". Details")[0].strip(" .") or "has ended"
        return DataError(
            f"{self._named(number)} {how} before it gave batch {batch}: look for the system's out-of-memory messages; "
            f"{HINT}"
        )

    def late(self, given: int, due: int, seconds: float) -> DataError:
        """When nothing has come for so many seconds. Stopped workers are continued, so that they can be ended."""
        number = given % len(self._pids)
        error = DataError(
            f"{self._named(number)} {processes.state(self._pids[number])} and has not given batch {due}, which was "
            f"waited for {seconds:.3g} s (deadlines.data): {self._hint(number)}"
        )
        self._continue()
        return error

    def not_ready(self) -> DataError:
        """When a worker does not begin another epoch."""
        states = [f"{pid} {processes.state(pid)}" for pid in self._pids]
        self._continue()
        return DataError(f"a worker of {self._name} does not begin another epoch: {', '.join(states)}: {HINT}")

    def _named(self, number: int) -> str:
        return f"worker {number} of {len(self._pids)} (pid {self._pids[number]}) of {self._name}"

    def _hint(self, number: int) -> str:
        if processes.is_stopped(self._pids[number]):
            return "see who sends SIGSTOP to processes of this machine"
        return f"look for a file system that hangs, or raise deadlines.data; {HINT}"

    def _continue(self) -> None:
        for pid in self._pids:
            if processes.is_stopped(pid):
                processes.kill(pid, signal.SIGCONT)
