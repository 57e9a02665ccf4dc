"""Apply a function to tasks in forked processes. Results are yielded in the order of the tasks, and the number of tasks
in flight is limited.

User code runs only in forked processes. If user code ends its process, the parent process reports how that process
ended.
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
"""Ends a worker, unless the worker is sending a result: an incomplete message would block the thread that reads results
in this process."""


class WorkerEnded(Exception):
    """A worker process ended before its task was done, or the task raised an exception that ends a process."""

    def __init__(self, how: str, status: int) -> None:
        super().__init__(how, status)
        self.how = how
        """How the worker ended, for example `exit code 3` or `signal 11 (SIGSEGV)`."""
        self.status = status
        """The exit code, or the negative number of the signal."""


def all_cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def signalled_at_end_of(parent: int, number: int) -> None:
    """Send this process the signal `number` when the thread that started it ends. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # the parent ended before prctl took effect
            os.kill(os.getpid(), number)


def map_in_order(
    work: Callable[[Task], Result],
    tasks: Iterable[Task],
    n_workers: int,
    max_in_flight: Callable[[], int],
    *,
    isolated: bool = False,
) -> Generator[Result]:
    """Yield `work(task)` for each task, in the order of the tasks, computed in workers that are forked from this
    process.

    With one worker, `work` is called in this process, unless `isolated` is set. Set `isolated` if `work` may end its
    process. Tasks are taken from `tasks` one by one, and only while fewer than max_in_flight() tasks are in flight.
    Tasks and results must be picklable, but `work` does not have to be. All workers end when this process ends or an
    exception is raised. Raises the exceptions of `work`, and WorkerEnded if a worker ended or `work` raised SystemExit
    or KeyboardInterrupt.
    """
    if n_workers == 1 and not isolated:
        yield from map(work, tasks)
        return
    pool = ProcessPoolExecutor(n_workers, _FORK, initializer=_begin, initargs=(work, os.getpid()))
    # Keep a reference to the processes, because shutdown() drops the pool's own references.
    processes: Mapping[int, BaseProcess] = pool._processes
    tasks, in_flight, end = iter(tasks), deque[Future[Any]](), object()
    try:
        while True:
            while len(in_flight) < max_in_flight() and (task := next(tasks, end)) is not end:
                in_flight.append(pool.submit(_run, task))
            if not in_flight:
                return
            yield in_flight.popleft().result()
    except BrokenProcessPool:
        pool.shutdown()  # waits for all workers, so that their exit codes are known
        raise _ended(list(processes.values())) from None
    except BaseException:
        for pid, process in processes.items():
            if process.is_alive():
                os.kill(pid, _STOP)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def try_in_child(work: Callable[[], object]) -> None:
    """Call the function in a forked process and discard its result. Raises WorkerEnded if the function ends the
    process.

    Exceptions of `work` are discarded too, because they occur again when the caller does the work in this process.
    The child's output is shown only if the work ended the child.
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
"""The function of this worker. A forked process inherits the function, so the function does not have to be
picklable."""
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
    """Return work(*args). Raises WorkerEnded in place of SystemExit and KeyboardInterrupt, which would end this
    process, or the parent process if the pool raised these exceptions there."""
    try:
        return work(*args)
    except (SystemExit, KeyboardInterrupt) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "_sitebuiltins" not in frame.filename]
        where = f"{type(error).__name__} at {frames[-1].filename}:{frames[-1].lineno}"
        if isinstance(error, KeyboardInterrupt):
            raise WorkerEnded(where, 130) from None
        # The same rules as when the interpreter exits: None means 0, and a value that is not an integer is printed.
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        text = f", {error.code}" if isinstance(error.code, str) else ""
        raise WorkerEnded(f"exit code {code} ({where}{text})", code & 0xFF) from None


def _ended(processes: list[BaseProcess]) -> WorkerEnded:
    """How the first process ended. The pool then ends the other processes with SIGTERM."""
    codes = [process.exitcode for process in processes]
    status = next((code for code in codes if code not in (None, -signal.SIGTERM)), -signal.SIGTERM)
    if status >= 0:
        return WorkerEnded(f"exit code {status}", status)
    try:
        name = f" ({signal.Signals(-status).name})"
    except ValueError:  # a real-time signal has no name
        name = ""
    return WorkerEnded(f"signal {-status}{name}", status)


def _begin(work: Callable[[Any], Any], parent: int) -> None:
    global _work
    _work = work
    gc.freeze()  # garbage collection would write to, and therefore copy, all memory shared with the parent
    signal.signal(_STOP, _stop)
    # Threads of a tokenizer would only compete for the cores that the other workers use.
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
    os._exit(0)  # does not run exit handlers or wait for threads that the work has started


def _end_with(parent: int) -> None:
    """End this process when its parent ends and on SIGTERM, even if the parent has a handler for SIGTERM. Ctrl-C is
    ignored in this process, because the parent handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signalled_at_end_of(parent, signal.SIGKILL)
