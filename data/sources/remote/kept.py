"""Fetch the parts of remote files that are needed when the files are opened, in parallel."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Thread, current_thread

from data.mds.remote.deadlines import wait_for_cleanup
from data.sources.remote.remote_file import RemoteFile

_PARALLEL = 16
BATCH = 256
"""Number of files whose parts are in memory at the same time."""


@contextmanager
def kept(files: Iterable[RemoteFile], *, end: bool) -> Iterator[None]:
    """Within the block, the heads of the files, or their ends, are in memory."""
    files = list(files)
    threads: set[Thread] = set()

    def keep(file: RemoteFile) -> None:
        threads.add(current_thread())
        file.keep(end=end)

    try:
        with ThreadPoolExecutor(_PARALLEL) as pool:
            for _ in pool.map(keep, files):
                pass
        wait_for_cleanup(threads)
        yield
    finally:
        for file in files:
            file.forget()
