"""Workers of a loader ignore signals of schedulers, but end with their training process or on its SIGTERM."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from torch.utils.data import DataLoader, Dataset

from data.loading.worker_process import BeginWorker


class Busy(Dataset):
    """One item, which takes a minute."""

    def __init__(self, pid_file: Path) -> None:
        self.pid_file = pid_file

    def __len__(self) -> int:
        return 1

    def __getitem__(self, n: int) -> int:
        part = self.pid_file.with_suffix(".part")
        part.write_text(str(os.getpid()))
        part.rename(self.pid_file)
        end = time.monotonic() + 60
        while time.monotonic() < end:  # handlers of Python would run
            time.sleep(0.01)
        return n


def _fork(act: Callable[[], int | None]) -> int:
    if (pid := os.fork()) == 0:
        os._exit(act() or 0)
    return pid


def _worker_of(pid_file: Path) -> psutil.Process:
    _wait_until(pid_file.exists)
    return psutil.Process(int(pid_file.read_text()))


def _wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def _is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def _loader(tmp_path: Path) -> DataLoader:
    return DataLoader(Busy(tmp_path / "pid"), batch_size=None, num_workers=1, worker_init_fn=BeginWorker())


@pytest.mark.skipif(not psutil.LINUX, reason="elsewhere torch's watchdog ends it, once it is not busy")
def test_a_busy_worker_ends_with_a_killed_training_process(tmp_path: Path) -> None:
    rank = _fork(lambda: next(iter(_loader(tmp_path))))
    worker = _worker_of(tmp_path / "pid")
    os.kill(rank, signal.SIGKILL)
    os.waitpid(rank, 0)
    _wait_until(lambda: _is_gone(worker))


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="who sends a signal cannot be known")
def test_a_worker_only_obeys_its_parent(tmp_path: Path) -> None:
    def rank() -> int:
        batches = iter(_loader(tmp_path))
        (worker,) = batches._workers  # pyright: ignore[reportAttributeAccessIssue]
        _wait_until((tmp_path / "signalled").exists)
        if not worker.is_alive():
            return 1
        worker.terminate()  # as the loader does with a worker that does not end
        worker.join(20)
        return 0 if worker.exitcode == 0 else 2

    pid = _fork(rank)
    worker = _worker_of(tmp_path / "pid")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        worker.send_signal(number)
    time.sleep(0.2)
    (tmp_path / "signalled").touch()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
