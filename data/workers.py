"""One function over many tasks in forked processes: results in order, a bounded number of tasks under way."""

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

_PR_SET_PDEATHSIG = 1


def all_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(
    work: Callable[[Task], Result], tasks: Iterable[Task], n_workers: int, under_way: Callable[[], int]
) -> Generator[Result]:
    """`work(task)` for each task, in the tasks' order; one worker works in this process, several are forked from it.

    A task is taken when it is given out, while fewer than under_way() are. Tasks and results must be picklable, `work`
    need not be. No worker outlives this process. Raises what `work` raises, and BrokenProcessPool when one is killed.
    """
    if n_workers == 1:
        yield from map(work, tasks)
        return
    pool = ProcessPoolExecutor(
        n_workers, multiprocessing.get_context("fork"), initializer=_begin, initargs=(work, os.getpid())
    )
    tasks, given_out, end = iter(tasks), deque[Future[Any]](), object()
    try:
        while True:
            while len(given_out) < under_way() and (task := next(tasks, end)) is not end:
                given_out.append(pool.submit(_run, task))
            if not given_out:
                return
            yield given_out.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_work: Callable[[Any], Any]
"""A worker's function: it came with the fork, so that nothing of it need be pickled."""


def _run(task: Any) -> Any:
    return _work(task)


def _begin(work: Callable[[Any], Any], parent: int) -> None:
    global _work
    _work = work
    gc.freeze()  # a collection would touch, and so copy, all the memory that is shared with the parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    # A tokenizer's own threads would only fight over the cores that the other workers use.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before that took effect
            os._exit(1)
