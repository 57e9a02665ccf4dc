"""Work in forked processes: its order, and every way in which a process can end."""

import os
import signal
import sys
import time

import pytest

from data.base.workers import WorkerEnded, map_in_order, try_in_child

pytestmark = pytest.mark.timeout(60)


def run(work, n_workers=1, tasks=range(8)):
    return list(map_in_order(work, tasks, n_workers, lambda: 2 * n_workers, isolated=True))


@pytest.mark.parametrize("n_workers", [1, 3])
def test_results_come_in_order_and_from_other_processes(n_workers):
    results = run(lambda task: (task, os.getpid()), n_workers)
    assert [task for task, _ in results] == list(range(8))
    assert os.getpid() not in {pid for _, pid in results}


def test_one_worker_runs_in_this_process():
    assert set(map_in_order(lambda task: os.getpid(), range(3), 1, lambda: 2)) == {os.getpid()}


def test_exceptions_of_the_work_are_raised():
    def refuse(task):
        raise ValueError(f"task {task}")

    with pytest.raises(ValueError, match="task 0"):
        run(refuse)


def interrupt():
    raise KeyboardInterrupt


def segfault():
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGSEGV)


ENDS = {
    "exit": (lambda: sys.exit(0), r"exit code 0 \(SystemExit at .*test_workers.py:\d+\)", 0),
    "exit with a code": (lambda: sys.exit(3), r"exit code 3 \(SystemExit at", 3),
    "exit with a text": (lambda: sys.exit("no"), r"exit code 1 \(SystemExit at .*, no\)", 1),
    "the interpreter's exit": (lambda: __builtins__["exit"](), r"exit code 0 \(SystemExit at .*test_workers.py:", 0),
    "hard exit": (lambda: os._exit(3), "exit code 3", 3),
    "hard exit 0": (lambda: os._exit(0), "exit code 0", 0),
    "interrupt": (interrupt, r"KeyboardInterrupt at .*test_workers.py:\d+", 130),
    "crash": (segfault, r"signal 11 \(SIGSEGV\)", -11),
    "killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), r"signal 9 \(SIGKILL\)", -9),
    "terminated": (lambda: os.kill(os.getpid(), signal.SIGTERM), r"signal 15 \(SIGTERM\)", -15),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("n_workers", [1, 3])
def test_the_end_of_a_worker_is_an_exception_in_the_parent(end, n_workers):
    work, how, status = ENDS[end]
    with pytest.raises(WorkerEnded, match=how) as error:
        run(lambda task: work() if task == 5 else task, n_workers)
    assert error.value.status == status


@pytest.mark.parametrize("end", ENDS)
def test_the_end_of_a_child_is_an_exception_in_the_parent(end):
    work, how, status = ENDS[end]
    with pytest.raises(WorkerEnded, match=how) as error:
        try_in_child(work)
    assert error.value.status == status


def test_output_of_a_child_is_shown_only_if_it_ends(capfd):
    try_in_child(lambda: os.write(1, b"fine"))
    assert capfd.readouterr() == ("", "")
    with pytest.raises(WorkerEnded):
        try_in_child(lambda: (os.write(1, b"usage: mine.py"), os._exit(2)))
    assert capfd.readouterr().err == "usage: mine.py"


def test_exceptions_of_a_child_are_dropped():
    try_in_child(lambda: 1 / 0)


def test_stopping_does_not_wait_for_the_work():
    results = map_in_order(lambda task: time.sleep(30 * task) or task, range(8), 2, lambda: 4)
    assert next(results) == 0
    begun = time.monotonic()
    results.close()
    assert time.monotonic() - begun < 10
