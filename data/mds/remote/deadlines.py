"""Time limits for remotes. Streaming has none: when a download dies, whoever waits for its shard never returns."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

QUIET = 45
"""Seconds without a byte after which a download has failed; with the waits between the tries it is under a minute."""
_POLL = 0.1

T = TypeVar("T")


class Silence:
    """How long nothing has been written below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._bytes, self._since = folder, -1, time.monotonic()

    def is_long(self) -> bool:
        n_bytes = sum(_bytes(Path(parent, name)) for parent, _, names in os.walk(self._folder) for name in names)
        if n_bytes != self._bytes:
            self._bytes, self._since = n_bytes, time.monotonic()
        return time.monotonic() - self._since > QUIET


def in_time(work: Callable[[], T], given_up: Callable[[], bool]) -> T:
    """What work() returns or raises, or TimeoutError once given_up(): then its thread is left behind."""
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
        if thread.is_alive() and given_up():
            raise TimeoutError(f"nothing came for {QUIET} s")
    # On its way out, which join() does not wait for, a thread that used TLS holds a lock of OpenSSL: a process forked
    # at that moment would hang at its first connection.
    while Path(f"/proc/self/task/{thread.native_id}").exists():
        time.sleep(0.001)
    if errors:
        raise errors[0]
    return results[0]


def _bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # gone since it was listed
        return 0
