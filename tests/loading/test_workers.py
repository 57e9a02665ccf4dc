"""Workers that are stopped, killed, slow or dead: one DataError that names the worker and the batch that it owed."""

import dataclasses
import gc
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data.base.durations import Clock
from data.base.errors import DataError
from data.loading.loader import BatchLoader, eval_loader, train_loader
from data.loading.opening import open_rows
from data.loading.rows import Rows
from data.loading.workers import Workers
from data.mixing.row_plan import RowPlan
from tests.helpers.toy_tokenizer import ToyTokenizer, loader_config, questions, write_jsonl

LIMIT = 2.0
N_BATCHES = 25


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_jsonl(folder / "train.jsonl", questions(200))
    return folder


@pytest.fixture(scope="module")
def rows(folder: Path) -> Rows:
    return open_rows(loader_config(folder).dataset, ToyTokenizer())


def loader_of(rows: Rows, folder: Path, num_workers: int) -> BatchLoader:
    config = loader_config(folder, num_workers)
    plan = RowPlan(config, {"": rows}, Clock(tokens_per_batch=256, rows_per_batch=8, rows_per_epoch=1), seed=17)
    return train_loader(
        {"": rows}, config, plan, n_batches=N_BATCHES, rank=0, world_size=1, pad_token_id=257, limit=LIMIT
    )


_of_others: set[int] = set()


@pytest.fixture(autouse=True)
def _note_processes_of_others() -> None:
    """Other children, such as workers of another test's loader, which end when it is collected."""
    _of_others.clear()
    _of_others.update(workers())


def workers() -> list[int]:
    """Pids of the workers of this test, in the order in which they were started."""
    # Pids are not in this order after the system has used its largest pid.
    children = sorted(multiprocessing.active_children(), key=lambda child: child._identity)
    return [child.pid for child in children if child.pid is not None and child.pid not in _of_others]


def read_until_error(loader: BatchLoader, after: int, do: Callable[[], object]) -> tuple[int, str]:
    """The number of batches, and the error. `do` is called after `after` batches."""
    given = 0
    try:
        with loader.worker_errors():
            for _ in loader:
                given += 1
                if given == after:
                    do()
    except DataError as error:
        return given, str(error)
    raise AssertionError("no error")


def wait_for_their_end() -> None:
    deadline = time.monotonic() + 20
    while workers():
        gc.collect()  # the loader's iterator
        assert time.monotonic() < deadline, "a worker was left"
        time.sleep(0.05)


@pytest.mark.parametrize(("num_workers", "number"), [pytest.param(1, 0, marks=pytest.mark.proof), (2, 1)])
def test_a_stopped_worker_is_named_with_the_batch_that_it_owes(
    rows: Rows, folder: Path, num_workers: int, number: int
) -> None:
    pids = []

    def stop() -> None:
        pids.append(workers()[number])
        os.kill(pids[0], signal.SIGSTOP)

    given, message = read_until_error(loader_of(rows, folder, num_workers), 3, stop)
    named = f"worker {number} of {num_workers} (pid {pids[0]}) of rank 0's train_loader is stopped (SIGSTOP)"
    waited = re.match(rf"{re.escape(named)} and has not delivered batch {given} within ([\d.]+) s ", message)
    assert waited is not None
    assert float(waited[1]) >= LIMIT
    assert given % num_workers == number
    wait_for_their_end()


@pytest.mark.parametrize(("num_workers", "number"), [(1, 0), (2, 1)])
def test_a_killed_worker_is_named_wherever_torch_raises(
    rows: Rows, folder: Path, num_workers: int, number: int
) -> None:
    pids = []

    def kill() -> None:
        pids.append(workers()[number])
        os.kill(pids[0], signal.SIGKILL)
        time.sleep(LIMIT)  # the step, in which torch raises

    given, message = read_until_error(loader_of(rows, folder, num_workers), 3, kill)
    named = f"worker {number} of {num_workers} (pid {pids[0]}) of rank 0's train_loader is killed by signal: Killed"
    assert message.startswith(f"{named} before it delivered batch {given + (number - given) % num_workers}")
    wait_for_their_end()


def test_a_worker_whose_connection_breaks_before_its_end_is_known_is_named() -> None:
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    worker.start()
    assert worker.pid is not None

    def raised(number: int, frame: object) -> None:
        raise RuntimeError(f"DataLoader worker (pid {worker.pid}) is killed by signal: Killed. ")

    before = signal.signal(signal.SIGCHLD, raised)
    try:
        threading.Timer(0.2, worker.kill).start()
        error = Workers("rank 0's train_loader", [worker.pid]).named(ConnectionResetError(), 3, 7)
    finally:
        signal.signal(signal.SIGCHLD, before)
    worker.join()
    name = f"worker 0 of 1 (pid {worker.pid}) of rank 0's train_loader"
    assert str(error).startswith(f"{name} is killed by signal: Killed before it delivered batch 7")


def test_a_worker_that_ends_is_named(rows: Rows, folder: Path) -> None:
    broken = dataclasses.replace(rows, decode=lambda sample: os._exit(1))
    _, message = read_until_error(loader_of(broken, folder, 1), 0, int)
    assert re.match(
        r"worker 0 of 1 \(pid \d+\) of rank 0's train_loader exited unexpectedly.* before it delivered", message
    )


def test_a_slow_worker_is_distinguished_from_a_stopped_one(rows: Rows, folder: Path) -> None:
    slow = dataclasses.replace(rows, decode=lambda sample: time.sleep(60))
    _, message = read_until_error(loader_of(slow, folder, 1), 0, int)
    assert "is waiting (state S) and has not delivered batch 0" in message
    assert "check whether a file system hangs, or increase deadlines.data" in message
    wait_for_their_end()


@pytest.mark.proof
def test_the_run_may_allow_more_than_the_limit(rows: Rows, folder: Path) -> None:
    def slowly(sample: object) -> object:
        time.sleep(LIMIT / 6)  # 8 rows are a batch
        return rows.decode(sample)

    @contextmanager
    def patient() -> Iterator[Callable[[], float]]:
        yield lambda: 60.0

    loader = loader_of(dataclasses.replace(rows, decode=slowly), folder, 1)
    loader.waiting = patient
    assert len(next(iter(loader))["input_ids"]) == 8


@pytest.mark.proof
def test_a_worker_that_is_stopped_between_two_evaluations_is_named(rows: Rows, folder: Path) -> None:
    config = dataclasses.replace(loader_config(folder, 2), persistent_workers=True)
    loader = eval_loader({"": rows}, config, device_batch_size=7, rank=0, world_size=1, pad_token_id=257, limit=LIMIT)
    assert len(list(loader)) == len(loader)
    pid = workers()[1]
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(DataError, match=rf"worker 1 of 2 \(pid {pid}\) of rank 0's eval_loader is stopped"):
        list(loader)
    del loader
    wait_for_their_end()
