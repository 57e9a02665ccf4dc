"""Locks between processes of a machine: files' flocks, which end with the process that holds them however it ends."""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from data.base.console import is_first

HEAD_START = 1.0
"""Seconds that local rank 0 is given to take the lock, because launchers show that rank's output alone."""
POLL = 1.0
"""Seconds between two looks at a lock that another process holds."""


@contextmanager
def exclusive(path: Path, waiting: Callable[[], object]) -> Iterator[None]:
    """Holds the lock file's lock; waits without a time limit, and calls `waiting` each second meanwhile."""
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
def exclusive_unless(path: Path, given_up: Callable[[], bool], poll: float = 0.05) -> Iterator[bool]:
    """Holds the lock file's lock and gives True; or gives False once given_up() does while another holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        while not (held := _lock(file)) and not given_up():
            time.sleep(poll)
        try:
            yield held
        finally:
            # By hand: a process that was forked meanwhile has the file open too, and closing it would not be enough.
            if held:
                fcntl.flock(file, fcntl.LOCK_UN)


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
