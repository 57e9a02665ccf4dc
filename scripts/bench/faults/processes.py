"""Runs the commands of this project in processes that are forked from a process in which the libraries are already
imported.

The outcome is what a user would see: the exit code, and the combined stdout and stderr. Because of the fork, a command
takes one or two seconds instead of fifteen.
"""

import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]

_PRELOADED = ["composer", "transformers", "streaming", "tiktoken", "omegaconf", "train.main", "train.run.fit"]
OTHERS_SECONDS = 2.0
"""Seconds from the end of the first failed rank until the other ranks are killed, as a launcher would do."""
_context = multiprocessing.get_context("forkserver")


def prepare() -> None:
    """Set up the fork server. Must be called before the first command."""
    path = os.environ.get("PYTHONPATH")
    os.environ.update(
        PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), path])),
        OMP_NUM_THREADS="1",
        CUDA_VISIBLE_DEVICES="",
        HF_HUB_OFFLINE="1",
    )
    _context.set_forkserver_preload([*_PRELOADED, __name__])


@dataclass(frozen=True)
class Ended:
    """The outcome of a command."""

    code: int | None
    """None if the command did not end in time and was killed."""
    text: str
    """The output of all ranks."""
    codes: tuple[int | None, ...] = ()
    """The exit code of each rank. The code is -9 for a killed rank, including a rank that was killed because it did not
    end."""
    seconds: float = 0.0
    """Seconds from the end of the first failed rank to the end of the last rank."""

    @property
    def crashed(self) -> bool:
        return "Traceback (most recent call last)" in self.text


class Running:
    """A command that runs on several ranks."""

    def __init__(self, script: str, arguments: Sequence[str], ranks: int, hook: Callable[[], None] | None) -> None:
        self._folder = Path(tempfile.mkdtemp())
        port = _free_port()
        self._ranks: list[Any] = [
            _context.Process(target=_rank, args=(self._folder / f"{rank}", rank, ranks, port, script, arguments, hook))
            for rank in range(ranks)
        ]
        for process in self._ranks:
            process.start()

    @property
    def pid(self) -> int:
        """The process id of rank 0."""
        return self._ranks[0].pid

    def wait(self, seconds: float, others_seconds: float = OTHERS_SECONDS) -> Ended:
        """Wait until all ranks have ended. Kill the remaining ranks after `seconds`, or `others_seconds` after a rank
        failed."""
        deadline, failed = time.monotonic() + seconds, None
        while any(process.is_alive() for process in self._ranks):
            now = time.monotonic()
            if failed is None and any(process.exitcode for process in self._ranks):
                failed = now
            if now > deadline or (failed is not None and now > failed + others_seconds):
                break
            time.sleep(0.02)
        late = failed is None and any(process.is_alive() for process in self._ranks)
        took = 0.0 if failed is None else time.monotonic() - failed
        codes = [process.exitcode for process in self._ranks]
        self.kill()
        code = None if late else next((code for code in codes if code), 0)
        text = "".join(path.read_text(errors="replace") for path in sorted(self._folder.iterdir()))
        shutil.rmtree(self._folder)
        return Ended(code, text, tuple(process.exitcode for process in self._ranks), took)

    def kill(self) -> None:
        """Kill the ranks and their child processes. Each rank has its own process group."""
        for process in self._ranks:
            if process.is_alive():
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.join()


def run(
    script: str,
    *arguments: str,
    ranks: int = 1,
    hook: Callable[[], None] | None = None,
    seconds: float = 180,
    others_seconds: float = OTHERS_SECONDS,
) -> Ended:
    """Run a script of this project, such as `scripts/generate.py`, on each rank. Each process calls hook first."""
    return Running(script, arguments, ranks, hook).wait(seconds, others_seconds)


def _free_port() -> int:
    """A port below the range of automatically assigned ports, so that no other program is assigned this port before
    rank 0 listens on it."""
    number = os.getpid() + time.monotonic_ns() // 1000
    while True:
        port = 20000 + number % 10000
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)):
                return port
        number += 1


def _rank(
    log: Path,
    rank: int,
    ranks: int,
    port: int,
    script: str,
    arguments: Sequence[str],
    hook: Callable[[], None] | None,
) -> None:
    os.setsid()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ.update(_variables(rank, ranks, port))
    import torch

    torch.set_num_threads(1)
    # By default, a child of the fork server would start its own children through the server, whereas a real rank forks
    # its children.
    multiprocessing.set_start_method("fork", force=True)
    sys.argv = [script, *arguments]
    code: Any = 0
    try:
        if hook is not None:
            hook()
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # os._exit skips the exit handlers, which would wait for other ranks.
    os._exit(code if isinstance(code, int) else 1)


def _variables(rank: int, ranks: int, port: int) -> Mapping[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
