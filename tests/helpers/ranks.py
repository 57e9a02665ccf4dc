"""Run a function on several ranks that are forked from one process with imported libraries: seconds instead of
minutes."""

import itertools
import multiprocessing
import os
import pickle
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.base.console import show_on_console
from tests.helpers.markers import require_marker

_calls = itertools.count()
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["composer", "transformers", "train.run.fit", "tests.helpers.preload"])


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120) -> list[Any]:
    """Return the result of function(*args) on each rank. The function must be at the top level of a module, so that it
    can be pickled. If a rank raises, the call fails with its traceback; a rank that exceeds the timeout is killed."""
    with started_ranks(function, world_size, *args) as ranks:
        deadline = time.monotonic() + timeout
        while ranks.running and not ranks.failed:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{function.__name__} on {world_size} ranks took longer than {timeout} s")
            time.sleep(0.02)
        ranks.end(grace=0.5)
        return ranks.results()


@contextmanager
def started_ranks(function: Callable[..., Any], world_size: int, *args: Any) -> "Iterator[Ranks]":
    """Start function(*args) on each rank, as run_ranks does. Ranks that still run when the context ends are killed."""
    require_marker("ranks")
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        processes = [
            _context.Process(target=_rank, args=(Path(folder), rank, world_size, port, function, args))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        ranks = Ranks(Path(folder), processes)
        try:
            yield ranks
        finally:
            ranks.end()


class Ranks:
    """Rank processes that have been started."""

    def __init__(self, folder: Path, processes: list[Any]) -> None:
        self._folder, self._processes = folder, processes

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    @property
    def running(self) -> bool:
        """Whether any rank is running."""
        return any(process.is_alive() for process in self._processes)

    @property
    def failed(self) -> bool:
        """Whether any rank has ended with a nonzero exit code."""
        return any(process.exitcode for process in self._processes)

    @property
    def exitcodes(self) -> list[int | None]:
        """The exit codes. -n means that signal n ended the rank."""
        return [process.exitcode for process in self._processes]

    def end(self, grace: float = 0.0) -> None:
        """Kill each rank that has not ended within this number of seconds."""
        for process in self._processes:
            process.join(grace)
            if process.is_alive():
                process.kill()
            process.join()

    def results(self) -> list[Any]:
        """Return the function's result on each rank. If it raised on a rank, raises RuntimeError with the traceback."""
        return _results(self._folder, self.exitcodes)


@dataclass(frozen=True, kw_only=True)
class RankEnd:
    """How a rank ended."""

    code: int
    """Exit code; negative means a signal."""
    output: str
    """stdout and stderr together."""
    seconds: float
    """Seconds since all ranks were started."""


def ends_of_ranks(function: Callable[..., int], world_size: int, *args: Any, timeout: float = 120) -> list[RankEnd]:
    """Run ranks whose exit code is function(*args), without a launcher that would end the others, and return how each
    ended. The function must be at the top level of a module. If a rank does not end, raises TimeoutError with the
    outputs."""
    with (
        tempfile.TemporaryDirectory() as folder,
        started_ranks(_ending_rank, world_size, folder, function, args) as ranks,
    ):
        start, ended = time.monotonic(), dict[int, float]()
        while len(ended) < world_size and (seconds := time.monotonic() - start) < timeout:
            ended |= {n: seconds for n, code in enumerate(ranks.exitcodes) if code is not None and n not in ended}
            time.sleep(0.02)
        ranks.end()
        outputs = [Path(folder) / str(rank) for rank in range(world_size)]
        texts = [path.read_text() if path.exists() else "" for path in outputs]
        if len(ended) < world_size:
            raise TimeoutError(f"of {world_size} ranks only {sorted(ended)} ended in {timeout} s: {texts}")
        codes = [code for code in ranks.exitcodes if code is not None]
        return [RankEnd(code=codes[n], output=texts[n], seconds=ended[n]) for n in range(world_size)]


def _ending_rank(folder: str, function: Callable[..., int], args: Any) -> None:
    file = os.open(Path(folder) / os.environ["RANK"], os.O_CREAT | os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    code = 1
    try:
        code = function(*args)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _free_port() -> int:
    """Return a port below the system's ephemeral range, so that no other process can take it before rank 0 listens.
    Each worker of pytest-xdist has its own residue class, so that no two choose the same port at the same time."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    n_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    while True:
        port = 20000 + (os.getpid() * 97 + next(_calls)) % (10000 // n_workers) * n_workers + worker
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)):
                return port


def _rank(folder: Path, rank: int, world_size: int, port: int, function: Callable[..., Any], args: Any) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        NODE_RANK="0",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    import torch

    torch.set_num_threads(1)
    # A child of the fork server would start its children with another fork server, but a real rank forks the workers of
    # its loader.
    multiprocessing.set_start_method("fork", force=True)
    show_on_console()
    try:
        result = (True, function(*args))
    except BaseException:
        result = (False, traceback.format_exc())
    (folder / f"{rank}.part").write_bytes(pickle.dumps(result))
    (folder / f"{rank}.part").rename(folder / f"{rank}.pkl")
    if not result[0]:
        # Skip the exit handlers, which would wait for the other ranks.
        os._exit(1)


def _results(folder: Path, exitcodes: list[int | None]) -> list[Any]:
    paths = [folder / f"{rank}.pkl" for rank in range(len(exitcodes))]
    results = {rank: pickle.loads(path.read_bytes()) for rank, path in enumerate(paths) if path.exists()}
    failed = [f"rank {rank} failed:\n{value}" for rank, (done, value) in results.items() if not done]
    if failed or len(results) < len(exitcodes):
        raise RuntimeError("\n".join(failed) or f"exit codes {exitcodes}, results only from {sorted(results)}")
    return [results[rank][1] for rank in range(len(exitcodes))]
