"""One function over many tasks in forked processes: results in order, a bounded number of tasks under way.

Code of users runs in such a process only: what ends its process ends a worker, and this process reports how.
"""

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

_FORK = multiprocessing.get_context("fork")
_PR_SET_PDEATHSIG = 1
_STOP = signal.SIGUSR1
"""Ends a worker unless it is sending a result: half a message would leave the reader in this process waiting."""


class WorkerEnded(Exception):
    """A worker's process ended before its task did, or the task raised what ends a process."""

    def __init__(self, how: str, status: int) -> None:
        super().__init__(how, status)
        self.how = how
        """Such as `exit code 3` or `signal 11 (SIGSEGV)`."""
        self.status = status
        """The exit code; below 0, the signal."""


def all_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def signalled_at_end_of(parent: int, number: int) -> None:
    """This process gets the signal when its parent's thread that has started it ends. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it died before that took effect
            os.kill(os.getpid(), number)


def in_order(
    work: Callable[[Task], Result],
    tasks: Iterable[Task],
    n_workers: int,
    under_way: Callable[[], int],
    *,
    isolated: bool = False,
) -> Generator[Result]:
    """`work(task)` for each task, in the tasks' order, in workers that are forked from this process.

    A single worker works in this process, unless `isolated`: work that may end its process. A task is taken when it is
    given out, while fewer than under_way() are. Tasks and results must be picklable, `work` need not be. No worker
    outlives this process, or an exception. Raises the exceptions of `work`, and WorkerEnded when a worker ended, or
    `work` raised SystemExit or KeyboardInterrupt in it.
    """
    if n_workers == 1 and not isolated:
        yield from map(work, tasks)
        return
    pool = ProcessPoolExecutor(n_workers, _FORK, initializer=_begin, initargs=(work, os.getpid()))
    processes: Mapping[int, BaseProcess] = pool._processes  # its shutdown() drops them
    tasks, given_out, end = iter(tasks), deque[Future[Any]](), object()
    try:
        while True:
            while len(given_out) < under_way() and (task := next(tasks, end)) is not end:
                given_out.append(pool.submit(_run, task))
            if not given_out:
                return
            yield given_out.popleft().result()
    except BrokenProcessPool:
        pool.shutdown()  # which waits for all of them: now the exit codes are known
        raise _ended(list(processes.values())) from None
    except BaseException:
        for pid, process in processes.items():
            if process.is_alive():
                os.kill(pid, _STOP)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def try_in_child(work: Callable[[], object]) -> None:
    """Does the work in a forked process, and drops its result. Raises WorkerEnded when it ends that process.

    Exceptions of `work` are dropped as well: whoever does the work in this process afterwards meets them again. What
    the child printed is shown only if it ended.
    """
    reader, writer = _FORK.Pipe(duplex=False)
    with reader, writer, tempfile.TemporaryFile() as output:
        child = _FORK.Process(target=_try, args=(work, writer, output.fileno(), os.getpid()))
        child.start()
        try:
            wait([reader, child.sentinel])
            how = reader.recv() if reader.poll() else None
        finally:
            if child.is_alive():
                child.kill()
            child.join()
        if how == ():
            return
        output.seek(0)
        sys.stderr.write(output.read().decode(errors="replace"))
        raise WorkerEnded(*how) if how else _ended([child])


_work: Callable[[Any], Any]
"""A worker's function: it came with the fork, so that nothing of it need be pickled."""
_working = _stopping = False


def _run(task: Any) -> Any:
    global _working
    if _stopping:
        os._exit(0)
    _working = True
    try:
        return _survived(_work, task)
    finally:
        _working = False


def _survived(work: Callable[..., Result], *args: Any) -> Result:
    """What work(*args) returns. Raises WorkerEnded for what would end whichever process raises it, this one or, sent
    there by the pool, the parent."""
    try:
        return work(*args)
    except (SystemExit, KeyboardInterrupt) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "_sitebuiltins" not in frame.filename]
        where = f"{type(error).__name__} at {frames[-1].filename}:{frames[-1].lineno}"
        if isinstance(error, KeyboardInterrupt):
            raise WorkerEnded(where, 130) from None
        # As the interpreter exits: none is 0, and anything but a number is printed.
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        text = f", {error.code}" if isinstance(error.code, str) else ""
        raise WorkerEnded(f"exit code {code} ({where}{text})", code & 0xFF) from None


def _ended(processes: list[BaseProcess]) -> WorkerEnded:
    """How the first of the processes ended; the pool has then ended the others with SIGTERM."""
    codes = [process.exitcode for process in processes]
    status = next((code for code in codes if code not in (None, -signal.SIGTERM)), -signal.SIGTERM)
    if status >= 0:
        return WorkerEnded(f"exit code {status}", status)
    try:
        name = f" ({signal.Signals(-status).name})"
    except ValueError:  # a real-time signal
        name = ""
    return WorkerEnded(f"signal {-status}{name}", status)


def _begin(work: Callable[[Any], Any], parent: int) -> None:
    global _work
    _work = work
    gc.freeze()  # a collection would touch, and so copy, all the memory that is shared with the parent
    signal.signal(_STOP, _stop)
    # A tokenizer's own threads would only fight over the cores that the other workers use.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _end_with(parent)


def _stop(number: int, frame: Any) -> None:
    global _stopping
    if _working:
        os._exit(0)
    _stopping = True


def _try(work: Callable[[], object], writer: Connection, output: int, parent: int) -> None:
    _end_with(parent)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    how: tuple[Any, ...] = ()
    try:
        _survived(work)
    except WorkerEnded as error:
        how = error.args
    except Exception:
        pass
    sys.stdout.flush()
    sys.stderr.flush()
    writer.send(how)
    os._exit(0)  # not what the work has registered for the end of a process, nor its threads


def _end_with(parent: int) -> None:
    """This process ends when its parent does or with SIGTERM, whatever handler the parent has for that, and not with
    Ctrl-C, which is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signalled_at_end_of(parent, signal.SIGKILL)
