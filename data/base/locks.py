"""Locks between processes on one machine. They use flock on files, and are released when the process ends for any
reason."""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from data.base.console import is_first

HEAD_START = 1.0
"""Seconds that other ranks wait before they try to acquire a lock, so that local rank 0 acquires the lock first.
Launchers show only the output of local rank 0."""
POLL = 1.0
"""Seconds between attempts to acquire a lock that another process holds."""


@contextmanager
def exclusive(path: Path, waiting: Callable[[], object]) -> Iterator[None]:
    """Hold the lock on the file. Waits without a time limit, and calls `waiting` every second while waiting."""
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
    """Hold the lock on the file and yield True. Yields False if give_up() returns true while another process holds the
    lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        while not (held := _lock(file)) and not give_up():
            time.sleep(poll)
        try:
            yield held
        finally:
            # Unlock explicitly. Closing the file is not enough, because a process that was forked in the meantime also
            # has the file open.
            if held:
                fcntl.flock(file, fcntl.LOCK_UN)


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
