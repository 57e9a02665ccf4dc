"""Time limits for remotes. Streaming has no time limits: if a download hangs or is killed, processes that wait for the
shard wait forever."""

import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

QUIET = 45
"""A download fails if no byte is received for this many seconds. Including the waits between retries, the download
fails less than a minute after the last byte was received."""
_POLL = 0.1

T = TypeVar("T")


class Silence:
    """Measures for how long nothing has been written below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._bytes, self._since = folder, -1, time.monotonic()

    def is_long(self) -> bool:
        n_bytes = sum(_bytes(Path(parent, name)) for parent, _, names in os.walk(self._folder) for name in names)
        if n_bytes != self._bytes:
            self._bytes, self._since = n_bytes, time.monotonic()
        return time.monotonic() - self._since > QUIET


def in_time(work: Callable[[], T], give_up: Callable[[], bool]) -> T:
    """Call work() in a thread, and return its result or raise its exception. Raises TimeoutError as soon as give_up()
    returns true; the thread then continues in the background."""
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL)
        if thread.is_alive() and give_up():
            raise TimeoutError(f"no data received for {QUIET} s")
    wait_for_cleanup([thread])
    if errors:
        raise errors[0]
    return results[0]


def wait_for_cleanup(threads: Iterable[threading.Thread]) -> None:
    """Wait until the threads, which have ended, no longer exist. join() does not wait for the cleanup of a thread,
    during which a thread that used TLS holds a lock of OpenSSL. A process forked at that moment would hang at its
    first connection."""
    while any(Path(f"/proc/self/task/{thread.native_id}").exists() for thread in threads):
        time.sleep(0.001)


def _bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # the file was deleted after it was listed
        return 0
