"""Attempts: the folders in which parts are written. An attempt that was killed leaves its folder behind."""

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data.mds.writer import UNFINISHED


@contextmanager
def attempt(folder: Path, slice: int) -> Iterator[Path]:
    """A new folder for the files of a part. The folder is removed at the end, if it still has its name."""
    number = uuid.uuid4().hex
    new, place = folder / UNFINISHED / f"new-{number}", folder / UNFINISHED / f"{_prefix()}{slice:05}-{number}"
    new.mkdir()
    lock = os.open(new, os.O_RDONLY)  # the lock is released when all processes of this attempt have ended
    try:
        with suppress(OSError):  # a file system without locks; remove_killed then removes nothing
            fcntl.flock(lock, fcntl.LOCK_SH)
        new.rename(place)
        yield place
    finally:
        os.close(lock)
        shutil.rmtree(place, ignore_errors=True)


def remove_killed(folder: Path) -> None:
    """Remove the attempts of killed processes on this machine."""
    for place in (folder / UNFINISHED).glob(f"{_prefix()}*"):
        with suppress(OSError):  # the attempt has just ended
            lock = os.open(place, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(place, ignore_errors=True)
            finally:
                os.close(lock)


def _prefix() -> str:
    """Locks may not be visible on other machines, so the name of the folder contains the name of the machine."""
    return f"attempt-{os.uname().nodename}-"
