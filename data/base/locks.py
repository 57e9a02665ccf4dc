"""Locks between processes of a machine. They use flock on files and are released when the process ends in any way."""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from data.base.console import is_first

HEAD_START = 1.0
"""Seconds by which local rank 0 may take the lock earlier, because launchers show only its output."""
POLL = 1.0
"""Seconds between attempts to take a lock that another process holds."""


@contextmanager
def exclusive(path: Path, waiting: Callable[[], object]) -> Iterator[None]:
    """Hold the lock of the lock file. Waits without a time limit, and calls `waiting` every second while it waits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not is_first():
        time.sleep(HEAD_START)
    with path.open("a") as file:
        while not _lock(file):
            waiting()
            time.sleep(POLL)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def exclusive_unless(path: Path, give_up: Callable[[], bool], poll: float = 0.05) -> Iterator[bool]:
    """Hold the lock of the lock file and yield True; or yield False if give_up() while another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        while not (held := _lock(file)) and not give_up():
            time.sleep(poll)
        try:
            yield held
        finally:
            # Unlock explicitly: a process forked meanwhile has the file open too, so closing it is not enough.
            if held:
                fcntl.flock(file, fcntl.LOCK_UN)


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
